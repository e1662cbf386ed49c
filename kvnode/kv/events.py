"""What changes look like to those who watch: events, and the parts a stream of them is made of.

A stream is `Started`, then, if the current items were asked for, `Listed` parts and one `Synced`, then `Changes` in the
order of their revisions, with `Progress` in between, until `Cancelled` or for ever. A revision is never split between
two parts: whoever has read a part can go on anywhere after it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from kvnode.kv.requests import KeyValue


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A version came to be. `kv.version == 0` says the key was deleted at `kv.mod_revision`."""

    kv: KeyValue
    previous: KeyValue | None = None


class ChangeSet(msgspec.Struct, frozen=True):
    """What one revision changed, of the keys and kinds that are watched. Many watchers share one."""

    revision: int
    events: tuple[Event, ...]  # at least one, in the order they were made
    rendered: dict[str, bytes] = {}  # what front ends made of it, by form: made once for all who watch


class Started(msgspec.Struct, frozen=True):
    """The stream has begun: changes from `from_revision` on will come, or after a list those after the list's revision.

    A client that had to begin again before its list was whole starts anew: what was listed before is void.
    """

    revision: int  # of the state that the stream began at
    from_revision: int


class Listed(msgspec.Struct, frozen=True):
    """Some of the items that exist at the revision of the `Synced` to come, by key."""

    items: tuple[KeyValue, ...]


class Synced(msgspec.Struct, frozen=True):
    """The list is whole; it shows `revision`, and changes after that follow."""

    revision: int


class Changes(msgspec.Struct, frozen=True):
    """One or more whole revisions, ascending."""

    sets: tuple[ChangeSet, ...]

    @property
    def events(self) -> list[Event]:
        return [event for each in self.sets for event in each.events]


class Progress(msgspec.Struct, frozen=True):
    """Everything that matches up to `revision` has come: a place to resume after, and a sign of life."""

    revision: int


CancelCode = Literal["slow", "compacted", "stopping"]


class Cancelled(msgspec.Struct, frozen=True):
    """The end, said aloud: nothing was dropped before it, and `resume_revision` is where a new stream goes on.

    slow: the reader left too much unread. compacted: the reader was so far behind that what it would have read next is
    dropped; what lies between is lost to it. stopping: the node goes away, ask another.
    """

    code: CancelCode
    resume_revision: int
    compact_revision: int = 0  # with compacted


WatchPart = Started | Listed | Synced | Changes | Progress | Cancelled
