"""``kvnode member``: who belongs to the cluster, and changing that, one step at a time.

A new node is best started with ``kvnode serve --join``, which has itself added. What a change needs of the cluster is
judged by the leader: its refusals say what to do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import msgspec

from kvnode.cli.main import fail
from kvnode.cli.options import caller, endpoint_option, output_option, print_table, timeout_option
from kvnode.client.http import Answer
from kvnode.client.members import add_body
from kvnode.errors import BadRequest, ConnectionLost, KvnodeError, TryAgain, Unknown
from kvnode.ids import NOBODY, NodeId
from kvnode.kv.interface import MemberInfo, Members, MembersChanged
from kvnode.kv.members import AddMember

LOOK_S = 1.0
LEVEL_LAG = 1_024  # a follower under load is always a little behind

_COLUMNS = ["id", "name", "role", "state", "peer", "client", "version", "log", "notes"]

_FORCE_REMOVE = """\
--force removes the member even if the voters that are left and answer are no majority of those left. If they are not,
the cluster stops taking writes with this change, for as long as they stay away. Use it only when this member is lost
for good and the refusal without --force says that it would cost the majority."""

_FORCE_PROMOTE = """\
--force gives the learner its vote although it has not caught up. Until it has, the cluster bears one failure less, and
if that happens it takes no writes."""


def _reach(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every one of these commands has."""
    return output_option("json", "table", default="table")(endpoint_option(timeout_option()(command)))


def _yes(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--yes", is_flag=True, help="With --force: do not ask.")(command)


@click.group()
def member() -> None:
    """Show, add, promote, move and remove members of the cluster.

    A new node joins by `kvnode serve --join URL`, which adds it here by itself; with --replace ID it takes the place
    of a dead one.

    \b
    Examples:
      kvnode member list
      kvnode member list --watch            goes on, as members catch up and come and go
      kvnode member remove 3                for ever: a node that comes back needs an empty directory
    """


@member.command("list")
@click.option("--watch", is_flag=True, help="Print again whenever something changes, until interrupted.")
@_reach
def list_(watch: bool, output: str | None, endpoints: list[str], timeout_ms: int) -> None:
    """Show the members, whether each is heard of, and how far it is.

    state: what gossip says: alive; suspect: it does not answer, others are asked; dead; left: it said that it goes. It
    is a hint, and told without a leader, too. With -o json also for how long, and the time a probe takes.

    Asks the leader, where the node that answers knows it, for only the leader knows how far the others are.
    """
    try:
        if not watch:
            _show(_look(endpoints, timeout_ms), output)
            return
        for found in _changes(endpoints, timeout_ms):
            _show(found, output, is_one_of_many=True)
    except KvnodeError as error:
        fail(error)
    except KeyboardInterrupt:
        return


@member.command()
@click.argument("peer")
@click.option("--name", default="", help="A name for people.")
@click.option("--promote", is_flag=True, help="Give it a vote as soon as it has caught up.")
@click.option("--replace", "replaces", type=click.IntRange(min=1), help="Remove this member then; implies --promote.")
@click.option("--wait", is_flag=True, help="Show how it catches up, until all of that is done.")
@_reach
def add(
    *,
    peer: str,
    name: str,
    promote: bool,
    replaces: int | None,
    wait: bool,
    output: str | None,
    endpoints: list[str],
    timeout_ms: int,
) -> None:
    """Make room for a new member whose peers reach it at PEER (host:port).

    It is a learner: it gets the log, and has no vote before it is promoted. Whoever starts there with an empty
    directory and `kvnode serve --join` is that member.
    """
    change = AddMember(peer, name, promote=promote or replaces is not None, replaces=NodeId(replaces or NOBODY))
    found = _change(endpoints, timeout_ms, "POST", "/v1/members", body=add_body(change))
    own = _member_of(found, found.id)
    _tell(found, output, f"{_words(own)} is a learner now")
    if not own.incarnation:
        told = f"kvnode serve --join {endpoints[0]} --peer {peer} --data-dir DIR --secret-file FILE"
        click.echo(f"kvnode: to start it, with an empty DIR: {told}", err=True)
    if wait:
        try:
            _wait(found, endpoints, timeout_ms)
        except KeyboardInterrupt:
            click.echo("kvnode: not waiting any more; the change goes on", err=True)


@member.command()
@click.argument("id_", metavar="ID", type=click.IntRange(min=1))
@click.option("--force", is_flag=True, help="Although it has not caught up: see the question that follows.")
@_yes
@_reach
def promote(*, id_: int, force: bool, yes: bool, output: str | None, endpoints: list[str], timeout_ms: int) -> None:
    """Give a learner its vote; refused until it has caught up."""
    _confirm(_FORCE_PROMOTE, force=force, yes=yes)
    found = _change(endpoints, timeout_ms, "POST", f"/v1/members/{id_}/promote", force=force)
    _tell(found, output, f"{_words(_member_of(found, id_))} has a vote now: {_count_voters(found)}")


@member.command()
@click.argument("id_", metavar="ID", type=click.IntRange(min=1))
@click.option("--force", is_flag=True, help="Although the majority may be lost: see the question that follows.")
@_yes
@_reach
def remove(*, id_: int, force: bool, yes: bool, output: str | None, endpoints: list[str], timeout_ms: int) -> None:
    """Remove a member for ever; refused if that would cost the majority.

    Its id is never given again, and its directory is of no use any more: to come back it starts with an empty one, as a
    new member.
    """
    _confirm(_FORCE_REMOVE, force=force, yes=yes)
    found = _change(endpoints, timeout_ms, "DELETE", f"/v1/members/{id_}", force=force)
    _tell(found, output, f"member {id_} is removed: {_count_voters(found)}")


@member.command()
@click.argument("id_", metavar="ID", type=click.IntRange(min=1))
@click.argument("peer")
@_reach
def update(*, id_: int, peer: str, output: str | None, endpoints: list[str], timeout_ms: int) -> None:
    """Let the others reach a member at another address.

    First start the node there (`peer.listen`, `peer.advertise`), then tell the cluster.
    """
    found = _change(endpoints, timeout_ms, "PUT", f"/v1/members/{id_}", body={"peer": peer})
    _tell(found, output, f"{_words(_member_of(found, id_))} is reached there now")


# ── asking ──────────────────────────────────────────────────────────────────────────────────────────


def _look(endpoints: list[str], timeout_ms: int) -> Members:
    """The members as the leader sees them, if whoever answers knows where that is."""
    found = _members(caller(endpoints, timeout_ms).call("GET", "/v1/members"))
    leader = next((member for member in found.members if member.id == found.leader), None)
    if leader is None or leader.match_index is not None or not leader.client_url:
        return found
    try:
        endpoint = leader.client_url.removeprefix("http://").rstrip("/")
        return _members(caller([endpoint], timeout_ms).call("GET", "/v1/members"))
    except (TryAgain, Unknown):  # it has just gone
        return found


def _changes(endpoints: list[str], timeout_ms: int) -> Iterator[Members]:
    """The members, whenever something about them has changed that is worth a look; for ever."""
    before: list[list[str]] | None = None
    while True:
        try:
            found = _look(endpoints, timeout_ms)
        except (TryAgain, Unknown) as error:  # an election, a node that stops: they will be back
            click.echo(f"kvnode: {error.message}", err=True)
        else:
            rows = _rows(found)
            if rows != before:
                yield found
            before = rows
        time.sleep(LOOK_S)


def _change(
    endpoints: list[str],
    timeout_ms: int,
    method: str,
    path: str,
    *,
    body: dict[str, Any] | None = None,
    force: bool = False,
) -> MembersChanged:
    data = None if body is None else json.dumps(body).encode()
    try:
        answer = caller(endpoints, timeout_ms).call(method, path, {"force": "1"} if force else {}, data)
        try:
            return msgspec.json.decode(answer.body, type=MembersChanged)
        except msgspec.MsgspecError as error:
            raise ConnectionLost(f"{answer.endpoint}: the answer is not kvnode's: {error}") from error
    except KvnodeError as error:
        fail(error, write=True)


def _members(answer: Answer) -> Members:
    try:
        return msgspec.json.decode(answer.body, type=Members)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"{answer.endpoint}: the answer is not kvnode's (a peer port? a proxy?): {error}") from error


def _confirm(what: str, *, force: bool, yes: bool) -> None:
    if force and not yes:
        click.echo(what, err=True)
        click.confirm("Go on?", abort=True, err=True)


def _wait(asked: MembersChanged, endpoints: list[str], timeout_ms: int) -> None:
    """Until the new member has what it was to have: the log, or a vote, or the place of another."""
    new = _member_of(asked, asked.id)
    for found in _changes(endpoints, timeout_ms):
        ids = {member.id for member in found.members}
        if new.id not in ids:
            if found.configuration_index < asked.configuration_index:
                continue  # a node that has not heard of it yet
            click.echo(f"kvnode: member {new.id} was removed", err=True)
            return
        own = _member_of(found, new.id)
        click.echo(f"{_words(own)}: {_notes(own, found)}; log: {_log_of(own, found)}")
        if new.wants_vote:
            is_done = own.role == "voter" and new.replaces not in ids
        else:
            is_done = own.lag is not None and own.connected and own.lag <= LEVEL_LAG
        if is_done:
            if new.replaces is not None:
                click.echo(f"member {new.replaces} is removed: {_count_voters(found)}")
            return


# ── showing ─────────────────────────────────────────────────────────────────────────────────────────


def _show(found: Members, output: str | None, *, is_one_of_many: bool = False) -> None:
    if output == "json":
        plain = msgspec.to_builtins(found)
        click.echo(json.dumps(plain) if is_one_of_many else json.dumps(plain, indent=2))
        return
    print_table(_COLUMNS, _rows(found))
    if is_one_of_many:
        click.echo()


def _tell(found: MembersChanged, output: str | None, words: str) -> None:
    click.echo(json.dumps(msgspec.to_builtins(found)) if output == "json" else words)


def _rows(found: Members) -> list[list[str]]:
    return [
        [
            str(one.id),
            one.name or "-",
            one.role,
            "-" if one.status == "unknown" else one.status,
            one.peer_address,
            one.client_url.removeprefix("http://") or "-",
            one.version or "-",
            _log_of(one, found),
            _notes(one, found),
        ]
        for one in found.members
    ]


def _log_of(one: MemberInfo, found: Members) -> str:
    """How far it is. In steps: a table that is printed anew must not change with every write."""
    if one.id == found.leader:
        return "leads"
    if one.match_index is None or one.lag is None:
        return "?"
    if one.progress == "snapshot":
        return "gets a snapshot"
    if not one.connected:
        return "-"
    if one.lag <= LEVEL_LAG:
        return "level"
    return f"{100 * one.match_index // (one.match_index + one.lag)} %"


def _notes(one: MemberInfo, found: Members) -> str:
    notes = []
    if not one.connected:
        notes.append("unreachable" if one.version else "never met")
    if one.status == "dead" and one.role == "voter":
        voters = [member for member in found.members if member.role == "voter"]
        has_quorum = 2 * sum(member.status != "dead" for member in voters) > len(voters)
        # Without a majority nothing can be replaced: enough of them have to come back with what they hold.
        notes.append(f"to replace it: kvnode serve --join … --replace {one.id}" if has_quorum else "start it again")
    if one.role == "learner":
        notes.append("gets its vote when level" if one.wants_vote else "no vote")
    if one.replaces in {member.id for member in found.members}:
        notes.append(f"takes the place of {one.replaces}")
    return ", ".join(notes) or "votes"


def _member_of(found: Members, id_: int) -> MemberInfo:
    return next(member for member in found.members if member.id == id_)


def _words(one: MemberInfo) -> str:
    return f"member {one.id} ({one.name}, {one.peer_address})" if one.name else f"member {one.id} ({one.peer_address})"


def _count_voters(found: Members) -> str:
    count = sum(member.role == "voter" for member in found.members)
    return f"{count} voter{'s' * (count != 1)}, {count // 2 + 1} needed"
