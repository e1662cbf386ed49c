"""Canaries of named writes: sessions and Idempotency-Keys."""

from __future__ import annotations

from canary import Canary

_TABLES = "tests/machine/test_sessions.py"
_CLUSTER = "tests/node/test_sessions.py"

CANARIES = (
    Canary(
        "session-by-connection",
        "a session's numbers count for the connection they came on",
        "kvnode/api/http/sessions.py",
        "    return Command(request, session, sequence, acknowledged or 0, fence=fence)",
        "    return Command(request, session, sequence + (id(call.request.transport) >> 4 << 16), acknowledged or 0)",
        ("tests/api/test_sessions.py", "tests/client/test_session.py"),
        number=28,
    ),
    Canary(
        "only-successes-stored",
        "a refusal is not kept as the answer: a later sending may be executed",
        "kvnode/machine/exactly_once.py",
        "        result = yield from execution\n",
        "        result = yield from execution\n        if isinstance(result, Refusal):\n            return result\n",
        (_TABLES,),
        sim=("runtime", 100),
    ),
    Canary(
        "session-not-in-the-store",
        "answers are kept in memory only, and are lost by a restart behind a flush",
        "kvnode/machine/sessions.py",
        "        self._side.put(_answer_key(session.id, command.sequence), kept)\n",
        "",
        (_TABLES, _CLUSTER),
        sim=("runtime", 100),
    ),
    Canary(
        "duplicate-executes-after-failover",
        "a new leader's node knows nothing of what was executed under others",
        "kvnode/node/sessions.py",
        "        self.end()\n\n    def end",
        "        self.end()\n"
        "        for id_ in self._sessions.ids():\n"
        "            self._sessions._by_use[id_].answers.clear()\n\n    def end",
        (_CLUSTER,),
        sim=("runtime", 20),
    ),
    Canary(
        "expired-session-executes",
        "a write under a session that has ended is executed under a new one of that number",
        "kvnode/machine/sessions.py",
        '            return Refusal("session_expired", f"there is no session {command.session} any more", revision)\n',
        "            session = self._by_use[command.session] = Session(command.session, 1_000, index)\n",
        (_TABLES, _CLUSTER),
        sim=("runtime", 100),
    ),
    Canary(
        "another-request-gets-the-answer",
        "whoever uses a name again gets its answer, whatever was asked",
        "kvnode/machine/answers.py",
        "        if fingerprint != self.fingerprint:",
        "        if False:",
        (_TABLES, _CLUSTER),
    ),
    Canary(
        "session-ended-although-used",
        "a session that was used after the leader looked is ended all the same",
        "kvnode/machine/sessions.py",
        "            if session is not None and used in {0, session.used}:",
        "            if session is not None:",
        (_TABLES,),
    ),
    Canary(
        "time-goes-on-under-another-leader",
        "a leader counts what it has seen of a session in an earlier office",
        "kvnode/node/sessions.py",
        "        self._seen.clear()\n",
        "",
        (_CLUSTER,),
    ),
    Canary(
        "acknowledged-executes-again",
        "a number whose answer was freed is taken for a new one",
        "kvnode/machine/sessions.py",
        "        if sequence <= session.floor:\n",
        "        if False:\n",
        (_TABLES, _CLUSTER),
        sim=("runtime", 100),
    ),
)
