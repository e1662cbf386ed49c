"""What a golden trace of the core shows: messages as they leave, facts, commits, answers, and writes that are held."""

from __future__ import annotations

from kvnode.ids import Index, NodeId, Term
from kvnode.raft.log import RaftLog
from kvnode.raft.messages import (
    AppendEntries,
    AppendReply,
    Configuration,
    Entry,
    ForwardProposals,
    ForwardReply,
    LogPosition,
    PeerMessage,
    ReadIndexReply,
    ReadIndexRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from kvnode.raft.output import Output, Persist
from tests.raft.cluster import Cluster, Member


class Traced(Cluster):
    """A cluster that writes down what happens, in order."""

    def __init__(self, *args: object, **named: object) -> None:
        self.trace: list[str] = []
        self.commits: dict[NodeId, Index] = {}
        super().__init__(*args, **named)  # type: ignore[arg-type]

    def start(self, id_: int) -> None:
        super().start(id_)
        self.commits[NodeId(id_)] = self[id_].commit_index

    def _execute(self, member: Member, output: Output) -> None:
        self._note(member, output)
        super()._execute(member, output)

    def _note(self, member: Member, output: Output) -> None:
        id_, trace, raft = member.id, self.trace, self[member.id]
        trace += [f"{id_}: {_plain(fact)}" for fact in output.facts]
        if raft.commit_index > self.commits[id_]:
            self.commits[id_] = raft.commit_index
            trace.append(f"{id_}: commit {position(raft.state.log, raft.commit_index)}")
        if member.id in self.slow_disks:
            if output.persist is not None:
                trace.append(f"{id_}: writes {_write(output.persist)}")
            trace += [
                f"{id_}: write {send.after} holds >{send.to} {describe(send.message)}"
                for send in output.sends
                if send.after > member.disk.durable
            ]
        for answers in (output.placed, output.forwarded, output.refused, output.reads_ready, output.reads_failed):
            trace += [f"{id_}: {_plain(answer)}" for answer in answers]

    def _release(self, member: Member) -> None:
        for send in member.held:
            if send.after <= member.disk.durable:
                lost = " (lost)" if (member.id, send.to) in self.cut_links else ""
                self.trace.append(f"{member.id}>{send.to} {describe(send.message)}{lost}")
        super()._release(member)


def _plain(fact: object) -> str:
    """BecameLeader(term=2, took_ms=5) → `became_leader term=2`; how long it took is not of interest here."""
    name = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(fact).__name__).lstrip("_")
    fields = [(field, getattr(fact, field)) for field in fact.__struct_fields__]  # type: ignore[attr-defined]
    return " ".join(
        [name, *(f"{field}={_value(value)}" for field, value in fields if field != "took_ms" and value != "")]
    )


def _value(value: object) -> str:
    if isinstance(value, Configuration):
        return ",".join(map(str, value.voters)) + "".join(f"+{learner}" for learner in value.learners)
    if isinstance(value, LogPosition):
        return f"{value.index}.{value.term}"
    return str(value).replace(" ", "-")


def _write(persist: Persist) -> str:
    parts = [f"{persist.number}:"]
    if persist.install is not None:
        kept = " keeping the log" if persist.install.keeps_log else ""
        parts.append(f"install={_value(persist.install.position)}{kept}")
    if persist.truncate_from:
        parts.append(f"truncate={persist.truncate_from}")
    parts.append(f"entries={_entries(persist.entries)}")
    if persist.hard_state is not None:
        parts.append(f"term={persist.hard_state.term} vote={persist.hard_state.vote}")
    return " ".join(parts)


def _entries(entries: tuple[Entry, ...]) -> str:
    if not entries:
        return "-"
    first, last = entries[0], entries[-1]
    return f"{first.index}.{first.term}" + (f"..{last.index}.{last.term}" if len(entries) > 1 else "")


def kind(message: PeerMessage) -> str:
    """The first word of a message in a trace, by which commands select it."""
    match message:
        case AppendEntries():
            return "append"
        case AppendReply(accepted=accepted):
            return "accept" if accepted else "reject"
        case VoteRequest(pre=pre):
            return "prevote" if pre else "vote"
        case VoteReply(granted=granted, pre=pre):
            return ("pregrant" if pre else "grant") if granted else ("prerefuse" if pre else "refuse")
        case TimeoutNow():
            return "timeoutnow"
        case ForwardProposals():
            return "forward"
        case ForwardReply():
            return "forwarded"
        case ReadIndexRequest():
            return "readindex"
        case ReadIndexReply():
            return "readreply"


def describe(message: PeerMessage) -> str:
    return f"{kind(message)} {_details(message)} term={message.term}"


def _details(message: PeerMessage) -> str:
    match message:
        case AppendEntries() as m:
            read_round = f" round={m.read_round}" if m.read_round else ""
            quiet = " quiet" if m.quiet else ""
            prev = f"prev={m.prev_index}.{m.prev_term}"
            return f"{prev} entries={_entries(m.entries)} commit={m.commit_index}{read_round}{quiet}"
        case AppendReply() as m:
            read_round = f" round={m.read_round}" if m.read_round else ""
            hint = "" if m.accepted else f" hint={m.hint_index}.{m.hint_term}"
            ahead = f" ahead={m.ahead_ms}" if m.ahead_ms else ""
            return f"{m.index}{hint} last={m.last_index}{read_round}{ahead}"
        case VoteRequest() as m:
            return f"last={m.last_index}.{m.last_term}" + (" transfer" if m.transfer else "")
        case VoteReply():
            return "-"
        case TimeoutNow() as m:
            return f"last={m.last_index}"
        case ForwardProposals() as m:
            return "ids=" + ",".join(str(proposed.id) for proposed in m.batch)
        case ForwardReply() as m:
            placed = ",".join(f"{id_}@{index}" for id_, index in m.placed)
            refused = ",".join(f"{id_}:{code}" for id_, code, _ in m.refused)
            return f"placed={placed or '-'} refused={refused or '-'}"
        case ReadIndexRequest() as m:
            return f"number={m.number}"
        case ReadIndexReply() as m:
            return f"number={m.number} index={m.index}"


def position(log: RaftLog, index: Index) -> str:
    return f"{index}.{log.term_at(index)}"


def runs(terms: list[Term]) -> str:
    """[1, 1, 1, 4] → 1x3,4."""
    parts: list[list[int]] = []
    for term in terms:
        if parts and parts[-1][0] == term:
            parts[-1][1] += 1
        else:
            parts.append([term, 1])
    return ",".join(f"{term}x{count}" if count > 1 else f"{term}" for term, count in parts) or "-"
