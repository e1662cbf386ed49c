"""Canaries of the front doors of what needs no quorum: tokens, contexts, streams of events."""

from __future__ import annotations

from canary import Canary

_TOKEN = ("tests/api/test_token.py",)
_CLIENT = ("tests/client/test_available.py",)

CANARIES = (
    Canary(
        "token-forgets-the-other-plane",
        "an answer of the store takes away what its caller has seen of the plane that needs no quorum",
        "kvnode/api/call.py",
        "        if self.shown is None and brought.seen is NOTHING_SEEN:",
        "        if self.shown is None:",
        _TOKEN,
    ),
    Canary(
        "token-goes-back",
        "an answer of the plane that needs no quorum takes away what its caller has seen of the store",
        "kvnode/api/call.py",
        "            revision, time = max(revision, brought.revision), max(time, brought.time)",
        "            pass",
        _TOKEN,
    ),
    Canary(
        "token-of-the-last-write-alone",
        "a token names only the write that was seen last, not those of other members seen before",
        "kvnode/kv/available.py",
        "rows[-SEEN_DOTS_MAX:]",
        "rows[-1:]",
        _TOKEN,
    ),
    Canary(
        "read-behind-its-token",
        "a read does not wait for what its token has seen",
        "kvnode/api/http/eventual.py",
        "ap_get(key, resolve=resolve, seen=seen, timeout_ms=timeout_ms)",
        "ap_get(key, resolve=resolve, timeout_ms=timeout_ms)",
        _TOKEN,
    ),
    Canary(
        "event-before-its-cause",
        "a posted event does not come after what its caller has seen",
        "kvnode/api/http/events.py",
        "post_event(fields, seen=seen, timeout_ms=timeout_ms)",
        "post_event(fields, timeout_ms=timeout_ms)",
        _TOKEN,
    ),
    Canary(
        "deleted-without-a-context",
        "whoever finds a key deleted cannot say that what it writes comes after the deletion",
        "kvnode/api/http/eventual.py",
        "        return call.refuse(missing, extra=extra)",
        "        return call.refuse(missing)",
        ("tests/api/test_eventual.py",),
    ),
    Canary(
        "write-ignores-its-context",
        "a write replaces nothing although its caller has read what is there",
        "kvnode/api/http/eventual.py",
        "ap_put(key, value, context=_context(call), seen",
        "ap_put(key, value, context=None, seen",
        ("tests/api/test_eventual.py",),
    ),
    Canary(
        "cursor-before-its-page-is-told",
        "a stream of events hands out its cursor before the whole page was written: who resumes there loses the rest",
        "kvnode/api/http/events.py",
        "        if first + AT_ONCE >= len(page.events):",
        "        if first == 0:",
        ("tests/api/test_events.py",),
    ),
    Canary(
        "ap-write-sent-twice",
        "the client sends a write again that may have taken effect: it stands there twice",
        "kvnode/client/available.py",
        "    return not isinstance(request, ApPut | ApDelete | EventPost)",
        "    return not isinstance(request, EventPost)",
        _CLIENT,
    ),
    Canary(
        "events-speak-to-the-terminal",
        "what somebody posted reaches the terminal of whoever reads the timeline as it is",
        "kvnode/cli/events.py",
        '"".join(one if one.isprintable() else',
        '"".join(one if one != "\\n" else',
        ("tests/cli/test_events.py",),
    ),
)
