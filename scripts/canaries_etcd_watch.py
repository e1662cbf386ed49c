"""Canaries of the etcd API's Watch service."""

from __future__ import annotations

from canary import Canary

_WATCH = ("tests/api/etcd/test_watch.py",)
_SOCKET = ("tests/api/etcd/test_watch_socket.py",)

CANARIES = (
    Canary(
        "etcd-watch-event-before-created",
        "a watch tells its first events before it has said that it is there",
        "kvnode/api/etcd/watch.py",
        "            await self._say(self._message(watch.began_at, watch.id, created=True))\n"
        "            self._start(watch)",
        "            self._start(watch)\n            await asyncio.sleep(0.01)\n"
        "            await self._say(self._message(watch.began_at, watch.id, created=True))",
        _WATCH,
    ),
    Canary(
        "etcd-watch-mark-ahead-of-events",
        "progress that was asked for names what is applied, not what all watches of the stream have told",
        "kvnode/api/etcd/watch.py",
        "min((watch.read_up_to for watch in self._watches.values()), default=self._context.admin.revision)",
        "self._context.admin.revision",
        _WATCH,
    ),
    Canary(
        "etcd-watch-level-while-it-writes",
        "a watch counts as level while what it has read is not written yet",
        "kvnode/api/etcd/watch.py",
        "        return self.stream.read_up_to if self.stream is not None and self.is_told else 0",
        "        return 1 if self.stream is not None else 0",
        _WATCH,
    ),
    Canary(
        "etcd-watch-resumes-late",
        "a stream that the store gave up as slow goes on one revision after where it was",
        "kvnode/api/etcd/watch.py",
        "from_revision=part.resume_revision)",
        "from_revision=part.resume_revision + 1)",
        _WATCH,
    ),
    Canary(
        "etcd-watch-speaks-after-cancel",
        "a cancelled watch is still read, and told, after the answer to its cancel",
        "kvnode/api/etcd/watch.py",
        "            watch.task.cancel()\n            await asyncio.wait([watch.task])  # it says nothing any more\n"
        "        if watch.stream is not None:\n            await watch.stream.aclose()\n",
        "            pass\n",
        _SOCKET,
    ),
    Canary(
        "etcd-watch-two-messages-a-chunk",
        "messages written together are one chunk",
        "kvnode/api/etcd/watch.py",
        'await carriage.write(b"".join(map(carriage.frame, messages)))',
        'await carriage.write(carriage.frame(b"\\n".join(messages)))',
        _WATCH,
    ),
    Canary(
        "etcd-watch-opened-by-a-foreign-page",
        "a page of another origin may open a WebSocket, for that changes nothing",
        "kvnode/api/guard.py",
        "        if changes_state or upgrades:",
        "        if changes_state:",
        _SOCKET,
    ),
)
