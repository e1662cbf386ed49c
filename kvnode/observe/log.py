"""Logs: structured events with stable names, written by a thread so that no reader of them can stall the node.

Two modes:

* A *process* (``kvnode serve``) calls `setup`. Lines go, as JSON or for a terminal, into a bounded queue that
  one thread writes out. A blocked reader (a stopped pager, a full pipe, a full disk) fills the queue; further
  lines are dropped and counted, and the count is reported as ``log.dropped`` once writing goes on. The event
  loop never waits for a line.
* An *embedded* node never calls `setup`. Events then go to the standard library's logger
  ``kvnode.<component>``, whose level and handlers belong to the host program: without any configuration that
  means warnings and errors on standard error, and nothing below.

A logger may be made at import time: which mode applies is looked up per event. A filtered-out event costs a
comparison. `EVENTS` names every event; a test keeps it equal to what the code logs and to the operations page.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

from kvnode.config import LogSection

EVENTS: dict[str, str] = {
    "node.started": "The process has read its configuration and recovered its data.",
    "node.stopping": "A clean shutdown began.",
    "node.stopped": "The process ends; everything acknowledged is on disk.",
    "node.failed": "The node must stop: `code` and `message` say why. Exit code 5.",
    "bootstrap.waiting": "The very first start waits until every initial member has been met; `missing` lists them.",
    "bootstrap.finished": "All initial members have been met and the cluster id is fixed.",
    "join.began": "A new node asks `endpoints` to make it a member, reached by its peers at `address`.",
    "join.waiting": "… and has not been taken in yet: `reason`. It asks again.",
    "join.admitted": "It is `member` now, written down durably; the leader sends it the log.",
    "join.catching_up": "The leader has sent `percent` of the log; `lag` entries are missing.",
    "join.finished": "A node that has joined has its vote.",
    "election.started": "This node asks for votes (`pre` = a trial round that changes no term).",
    "election.won": "This node is the leader of `term`.",
    "leader.known": "This node follows `leader` in `term`.",
    "leader.stepped_down": "This node was the leader and is not any more; `reason` says why.",
    "follower.became": "This node's role changed to follower.",
    "log.truncated": "Uncommitted entries from `index` on were replaced by another leader's.",
    "wal.recovered": "The write-ahead log was read; `last_index`, `term` and the time it took.",
    "wal.torn_tail_cut": "An unfinished, never acknowledged record at the end of the log was dropped.",
    "wal.damaged": "The log is damaged at `file`, `offset`: entries that were acknowledged cannot be read any more.",
    "quarantine.began": "Damage was set aside; this node neither votes nor stands until peers have restored its log.",
    "quarantine.ended": "The log is whole again up to `index`; this node votes as before.",
    "node.restarting": "The running node found damage in its log and starts again, to set it aside.",
    "disk.stalled": "An fsync has been in flight for longer than `storage.stall_ms`.",
    "disk.recovered": "The stalled fsync returned.",
    "available.damaged": "The store in `ap/` could not be read: `what`. It was set aside; peers give its content back.",
    "member.suspect": "Probes of `member` got no answer, says `by`.",
    "member.alive": "`member` lives; it `was` held suspect, dead or gone.",
    "member.dead": "`member` did not take the suspicion back in time.",
    "member.left": "`member` stopped on purpose.",
    "member.refuted": "This node was held suspect or dead by `by`, and has said that it lives.",
    "member.datagrams_blocked": "`member` answers by HTTP only: datagrams between it and this node do not get through.",
    "node.stood_still": "This node was not run for `ms`: a pause, a suspended machine, no processor.",
    "gossip.pull_failed": "Keys and events did not come from `peer`: `reason`. Tried again, ever less often.",
    "clock.jumped": "This node's wall clock jumped by `by_ms`: it does not stand for election for a while.",
    "clock.ahead": "A majority refuses what this node stamps as leader: its clock is `ahead_ms` ahead of theirs.",
    "stamp.refused": "Entries of leader `peer` are stamped `ahead_ms` in the future and are not taken.",
    "stamp.tolerated": "… and are taken now, as nothing is committed without `peer`: clocks must be put right.",
    "peer.connected": "Both connections to `peer` are up and proven.",
    "peer.lost": "The connection to `peer` ended; it is dialled again.",
    "peer.refused": "A peer connection failed its handshake; `reason` names the setting or proof that differed.",
    "peer.lost_entries": "`peer` restarted without entries it had acknowledged: replace its disk. They are sent again.",
    "peer.needs_snapshot": "`peer` needs entries this node's log does not hold any more.",
    "state.diverged": "This node's state at entry `index` is not the majority's: it stops.",
    "state.differs": "Members that have applied the same entries have different states; `reason` says which.",
    "backup.began": "A backup of this node's state up to entry `index` is being read.",
    "backup.ended": "It is not read any more: `bytes` of it were; `reason` says why.",
    "backup.broken_off": "A backup was not sent whole: `reason`.",
    "snapshot.sending": "The log does not hold what `peer` needs: it is sent the state up to entry `index`.",
    "snapshot.sent": "`peer` has the state up to entry `index` now.",
    "snapshot.not_sent": "An attempt to send `peer` a snapshot failed: `reason`. It is tried again.",
    "snapshot.receiving": "A snapshot of `peer`, up to entry `index`, comes in, from `block` on.",
    "snapshot.installed": "This node's store came as a snapshot of `peer`, up to entry `index`.",
    "snapshot.ignored": "A snapshot of `peer` was not used; `reason` says why.",
    "members.changed": "The members are others from entry `index` on: `voters`, `learners`, `feature_level`.",
    "vote.granted": "This node voted for `candidate` in `term`.",
    "transfer.began": "Leadership is being handed to `peer`.",
    "transfer.aborted": "The hand-over did not finish in time; this node goes on leading.",
    "heartbeat.late": "A heartbeat left later than twice its interval; `late_ms`.",
    "duty.not_done": "A command of the leader's own (an expiry, say) was refused, or its fate is not known: `error`.",
    "loop.lagged": "The event loop was busy for `lag_ms`.",
    "request.answered": "(debug) A client request: `request_id`, `method`, `status`, `took_ms`; never keys or values.",
    "request.failed": "A request met an unexpected error; `request_id` finds it again. A bug: please report it.",
    "request.malformed": "A connection sent what is not HTTP; `unlogged` such requests since the last line had none.",
    "log.dropped": "`count` lines were lost because their reader did not keep up.",
    "library.logged": "A library used by kvnode logged `text`.",
}
"""Every event name with the sentence the operations page shows."""

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_STALLED_EXIT_MS = 1_000
_STDERR = 2


class _Sink(Protocol):
    def admits(self, level: int, component: str) -> bool: ...

    def write(self, event: EventDict) -> None: ...


class _HostSink:
    """Embedded: the host program's standard logging decides."""

    def admits(self, level: int, component: str) -> bool:
        return logging.getLogger(f"kvnode.{component}").isEnabledFor(level)

    def write(self, event: EventDict) -> None:
        level = _LEVELS[event.pop("level")]
        component = event.pop("component", "node")
        event.pop("time", None)
        exc_info = event.pop("exc_info", None)
        text = " ".join([event.pop("event"), *(f"{key}={value!r}" for key, value in event.items())])
        logging.getLogger(f"kvnode.{component}").log(level, "%s", text, exc_info=exc_info)


class LineWriter:
    """A bounded queue of lines and the one daemon thread that writes them; full means dropped and counted."""

    def __init__(self, write: Callable[[str], None], lines_max: int, report_dropped: Callable[[int], str]) -> None:
        self._write = write
        self._lines_max = lines_max
        self._report_dropped = report_dropped
        self._changed = threading.Condition()
        self._lines: list[str] = []  # len ≤ lines_max
        self._dropped = 0  # since the last report
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="kvnode-log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Queue one line (with its newline). Never waits for the reader."""
        with self._changed:
            if len(self._lines) >= self._lines_max or self._closed:
                self._dropped += 1
                return
            self._lines.append(line)
            self._changed.notify_all()

    def flush(self, timeout_ms: int) -> bool:
        """Wait until everything queued is written; False if the reader is too slow for that."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._busy, timeout_ms / 1000)

    def close(self) -> bool:
        """Write what can be written soon, then end the thread. False: it is stuck in a write and left to its fate."""
        idle = self.flush(_STALLED_EXIT_MS)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        return idle

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines or self._closed)
                if self._closed and not self._lines:
                    return
                lines, self._lines = self._lines, []
                dropped, self._dropped = self._dropped, 0
                self._busy = True
            if dropped:
                lines.append(self._report_dropped(dropped))
            try:
                self._write("".join(lines))
            except OSError:  # the reader is gone or the disk is full: count, and report when it works again
                with self._changed:
                    self._dropped += len(lines) - bool(dropped) + dropped


class _ProcessSink:
    """``kvnode serve``: rendered lines into the writer's queue."""

    def __init__(self, section: LogSection, node: int) -> None:
        self._level = _LEVELS[section.level]
        self.node = node
        # A descriptor, not a Python stream: a thread stuck in writing to a stream holds its lock, and the
        # interpreter aborts at exit when it cannot take it.
        self._descriptor = _open_append(section.file) if section.file else _STDERR
        is_terminal = os.isatty(self._descriptor)
        self._console = section.format == "console" or (section.format == "auto" and is_terminal)
        self._render_console = structlog.dev.ConsoleRenderer(
            colors=_wants_colour(is_terminal),
            sort_keys=False,
            timestamp_key="time",
            pad_event_to=22,
            exception_formatter=structlog.dev.plain_traceback,
        )
        self._writer = LineWriter(self._write_out, section.queue_lines_max, self._dropped_line)

    def admits(self, level: int, component: str) -> bool:
        return level >= self._level

    def write(self, event: EventDict) -> None:
        self._writer.put(self._line(event))

    def flush(self, timeout_ms: int) -> bool:
        return self._writer.flush(timeout_ms)

    def close(self) -> None:
        if self._writer.close() and self._descriptor != _STDERR:  # never under a thread that still writes to it
            os.close(self._descriptor)

    def _line(self, event: EventDict) -> str:
        ordered = {key: event.pop(key, "") for key in ("time", "level", "event")}
        ordered |= {"node": self.node, **event}
        if self._console:
            ordered["time"] = ordered["time"][11:23]  # the date is noise on a terminal
            del ordered["node"]
            return f"{self._render_console(None, '', ordered)}\n"
        structlog.processors.format_exc_info(None, "", ordered)
        return msgspec.json.encode(ordered, enc_hook=repr).decode() + "\n"

    def _write_out(self, text: str) -> None:
        left = memoryview(text.encode("utf-8", "backslashreplace"))
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # somebody made the shared pipe non-blocking
                select.select([], [self._descriptor], [])

    def _dropped_line(self, count: int) -> str:
        event: EventDict = {"event": "log.dropped", "level": "warning", "component": "log", "count": count}
        return self._line(_stamp_time(None, "", event))


def _open_append(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


def _wants_colour(is_terminal: bool) -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    return is_terminal or bool(os.environ.get("FORCE_COLOR"))


class _Library(logging.Handler):
    """Carries what libraries log through the same writer."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = get_logger(record.name)
        level = max((known for known in _LEVELS.values() if known <= record.levelno), default=10)
        name = next(name for name, value in _LEVELS.items() if value == level)
        getattr(logger, name)("library.logged", text=record.getMessage(), exc_info=record.exc_info or None)


_HOST_SINK = _HostSink()
_LIBRARY_HANDLER = _Library()
_sink: _Sink = _HOST_SINK

_stamp_time = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")


class _HandOver:
    """Last stop of an event: the sink of the mode that applies now."""

    def write(self, event: EventDict) -> None:
        _sink.write(event)


def _as_argument(_logger: WrappedLogger, _name: str, event: EventDict) -> tuple[tuple[EventDict], dict[str, Any]]:
    return (event,), {}


_PROCESSORS: tuple[Any, ...] = (structlog.contextvars.merge_contextvars, _stamp_time, _as_argument)


class Logger(structlog.BoundLoggerBase):
    """A structlog logger; `bind(peer=2)` gives one that carries the value on every event."""

    def debug(self, event: str, **values: Any) -> None:
        self._emit("debug", event, values)

    def info(self, event: str, **values: Any) -> None:
        self._emit("info", event, values)

    def warning(self, event: str, **values: Any) -> None:
        self._emit("warning", event, values)

    def error(self, event: str, **values: Any) -> None:
        self._emit("error", event, values)

    def exception(self, event: str, **values: Any) -> None:
        """An error with the traceback of the exception being handled."""
        self._emit("error", event, {"exc_info": True, **values})

    def _emit(self, level: str, event: str, values: dict[str, Any]) -> None:
        if _sink.admits(_LEVELS[level], self._context["component"]):
            if values.get("exc_info") is True:
                values["exc_info"] = sys.exc_info()
            self._proxy_to_logger("write", event, level=level, **values)


def get_logger(component: str) -> Logger:
    """The logger of one component: ``raft``, ``wal``, ``peers`` …"""
    return Logger(_HandOver(), _PROCESSORS, {"component": component})


def setup(section: LogSection, *, node: int) -> None:
    """Configure the process's logging. Called once, by ``kvnode serve``; never by an embedded node.

    Raises: OSError if `section.file` cannot be opened.
    """
    global _sink  # noqa: PLW0603  one process, one standard error
    shutdown()
    _sink = _ProcessSink(section, node)
    root = logging.getLogger()
    root.addHandler(_LIBRARY_HANDLER)
    root.setLevel(max(_LEVELS[section.level], _LEVELS["warning"]))


def set_node(node: int) -> None:
    """Lines of this process name `node` from now on: one that joins does not know its id when logging begins."""
    if isinstance(_sink, _ProcessSink):
        _sink.node = node


def flush(timeout_ms: int = _STALLED_EXIT_MS) -> bool:
    """Wait for queued lines; for code that ends the process without the interpreter's exit handlers."""
    return _sink.flush(timeout_ms) if isinstance(_sink, _ProcessSink) else True


def shutdown() -> None:
    """Write what is queued and return to the embedded mode."""
    global _sink
    sink, _sink = _sink, _HOST_SINK
    logging.getLogger().removeHandler(_LIBRARY_HANDLER)
    if isinstance(sink, _ProcessSink):
        sink.close()


atexit.register(shutdown)
