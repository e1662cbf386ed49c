"""Canaries of watches."""

from __future__ import annotations

from canary import Canary

_RUNTIME = ("runtime", 100)
_NODE = ("tests/node/test_watches.py",)

CANARIES = (
    Canary(
        "watch-skips-delete-at-the-floor",
        "the changes of the compacted revision itself are refused, a deletion among them",
        "kvnode/machine/changelog.py",
        "        if page.revision < compact_revision:",
        "        if page.revision <= compact_revision:",
        ("tests/machine/test_changelog.py", *_NODE),
        number=34,
    ),
    Canary(
        "watch-mark-ahead-of-events",
        "a mark names what is applied, not what the stream has shown",
        "kvnode/node/watch_stream.py",
        "        return Progress(watcher.next - 1)",
        "        return Progress(self._watches.machine.revision)",
        _NODE,
        number=35,
    ),
    Canary(
        "watch-woken-too-late",
        "a stream that is woken by a change goes on after everything known by then",
        "kvnode/node/audience.py",
        "            return False\n        del self.parked[watcher]",
        "            watcher.next = next_revision\n            return False\n        del self.parked[watcher]",
        _NODE,
        _RUNTIME,
    ),
    Canary(
        "watch-part-skips-one",
        "what did not fit into a part is taken up again one revision late",
        "kvnode/node/watch_stream.py",
        "        watcher.next = revisions[at] if at < len(revisions)",
        "        watcher.next = revisions[at] + 1 if at < len(revisions)",
        _NODE,
    ),
    Canary(
        "watch-future-shows-the-past",
        "a stream that is to start in the future starts now, and shows what is older than its start",
        "kvnode/node/watches.py",
        "Watcher(audience, request.from_revision or revision + 1,",
        "Watcher(audience, min(request.from_revision or revision + 1, revision + 1),",
        (*_NODE, "tests/node/test_watch_regressions.py"),
        _RUNTIME,
    ),
    Canary(
        "watch-told-before-the-entry-is-whole",
        "the first events of an entry are told as if they were all of its revision",
        "kvnode/node/applier.py",
        "                if watches.is_watched:\n                    watches.applied(applied.events)",
        "                if watches.is_watched:\n                    watches.applied(applied.events[:1])",
        ("tests/node/test_watch_regressions.py",),
        _RUNTIME,
    ),
    Canary(
        "watch-newcomer-joins-an-announcement",
        "a new audience counts on an announcement that had looked past it",
        "kvnode/node/watches.py",
        "since=self.ring.next)",
        "since=self.next)",
        _NODE,
    ),
    Canary(
        "watch-resume-repeats-one",
        "a client that was too slow is told to resume at a revision that it has",
        "kvnode/api/http/watches.py",
        "resume = max(resume, last + 1)",
        "resume = max(resume, last)",
        ("tests/api/test_watches.py",),
    ),
    Canary(
        "watch-client-resumes-after-a-part",
        "the client resumes after a revision of which only a part had come",
        "kvnode/client/watch.py",
        "                self._events.append(event)\n",
        "                self._events.append(event)\n                self.next = revision + 1\n",
        ("tests/client/test_watch.py",),
    ),
    Canary(
        "watch-slow-reader-dropped-silently",
        "a client that was too slow finds its stream ended without a word",
        "kvnode/api/http/watches.py",
        "        outlet.end(outlet.frame(voice.say(_last_words(slow))))\n        outlet.linger()",
        "        outlet.end()\n        outlet.linger()",
        ("tests/api/test_watches.py",),
    ),
    Canary(
        "watch-not-bounded",
        "whatever a client does not read is kept for it",
        "kvnode/api/streaming.py",
        "        while (unread := transport.get_write_buffer_size()) > self._bytes_max:",
        "        while (unread := transport.get_write_buffer_size()) > 1 << 40:",
        ("tests/api/test_watches.py",),
    ),
)
