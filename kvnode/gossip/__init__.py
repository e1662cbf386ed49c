"""The gossip core: who is alive, without leader or quorum. Inputs and the time go in, a `GossipOutput` comes out.

Imports row 0 only; no I/O, no clock, no tasks. It never touches voters, terms or leases: what it says is a hint.
"""
