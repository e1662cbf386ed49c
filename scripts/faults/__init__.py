"""Faults on real processes: what `scripts/chaos.py` and the system tests do to nodes, their disks and their networks.

sandbox      namespaces of our own, so that no mount, address or process outlives the run
undo         what must be undone, registered before it is done
command      a tool of the system, run to its end
capability   what this machine lets us do; what is missing is skipped with its reason
nodes        the processes of a cluster         pulse      who leads, how often that changed
syscalls     strace as an injector              images     disks that freeze, fill and lose power
hub          hosts, cut packets                 proxy      links that delay, corrupt, swallow, reset
field        all that can be done to one cluster, and how it is undone
recorders    clients that write a history       kinds      the faults by name
shapes       of partitions                      schedule   a seed → episodes
stage        a cluster from start to verdict    aftermath  level, read everything, judge
run          one leg: faults, calm, again       scenarios  courses of events with a name
scene        what those are written with        report     the summary
leftovers    the proof that there are none
"""
