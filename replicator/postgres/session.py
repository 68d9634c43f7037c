"""Sessions that do not wait for ever: who has waited long asks the server what became of the answer.

TCP does not tell. A firewall, a NAT or a load balancer may have forgotten a connection in which both ends still
believe, and what stands in between may answer keepalives all the same. So a connection of its own looks at what the
session does. If it works, the wait goes on; if it is gone, or waits for us while we wait for it, the line is dead.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Literal, TypeVar

import psycopg

Side = Literal["source", "target"]
Connection = psycopg.Connection[tuple[Any, ...]]

_PATIENCE_S = float(os.environ.get("REPLICATOR_SILENCE_S") or 15.0)  # of silence before the first look
LOOK_TIMEOUT_S = max(2, round(min(5.0, _PATIENCE_S / 3)))  # to connect, and again to be answered
_SIOCOUTQ = 0x5411  # Linux: bytes of a socket that the other end has not acknowledged

T = TypeVar("T")


class Verdict(Enum):
    """What a look at a silent session found."""

    WORKING = "the server works on it"
    WAITING = "the server waits for us, too"
    GONE = "the server has ended it"
    UNREACHABLE = "the server cannot be reached"
    UNKNOWN = "the server answers, but tells nothing"  # it has no connection to spare, say


@dataclass(frozen=True, slots=True)
class Peer:
    """The server's end of a session. A PID alone may be somebody else's by now; at the very start we know no more."""

    purpose: str
    pid: int
    backend_start: dt.datetime | None
    look_conninfo: str = field(repr=False)  # for another session on the same server


def end(conn: Connection, peer: Peer) -> None:
    """End an earlier session of ours, if its server still has it."""
    conn.execute(
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
        " WHERE pid = %s AND backend_start = %s",
        (peer.pid, peer.backend_start),
    )


class Session(Connection):
    """A connection whose waits end when the server's end of it is gone or waits too. ``peer`` None: not watched."""

    peer: Peer | None = None

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """As psycopg's, which calls it whenever it waits for the server."""
        return super().wait(self._attended(gen), *args, **kwargs)

    def _attended(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        silence = None
        try:
            state = next(gen)
            while True:
                ready = yield state
                if ready:
                    silence = None
                elif silence is None:  # psycopg looks up ten times a second
                    silence = Silence(self)
                else:
                    silence.check()
                state = gen.send(ready)
        except StopIteration as stop:
            value: T = stop.value
            return value


class Silence:
    """One stretch of time in which nothing came. Its looks happen in a thread of their own: `check` never waits."""

    patience_s: ClassVar[float] = _PATIENCE_S

    def __init__(self, conn: Connection) -> None:
        """Begins now. Nothing happens to sessions that are no `Session`."""
        self._conn = conn
        self._peer = conn.peer if isinstance(conn, Session) else None
        self.heard()

    def heard(self) -> None:
        """Something came, or nobody listened: begin anew."""
        self._since = time.monotonic()
        self._next_look = self._since + self.patience_s
        self._look: _Look | None = None
        self._suspected = False
        self._unsent = 0

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return time.monotonic() - self._since

    @property
    def is_suspicious(self) -> bool:
        """Whether it is time to ask for a sign of life, where the protocol knows one."""
        return self.seconds > self.patience_s / 2

    def check(self) -> None:
        """Look when it is time to; hang up once two looks agree, or the session is gone. To be called every second.

        Raises:
            psycopg.OperationalError: hung up.
        """
        if self._peer is None:
            return
        if self._look is not None:
            if self._look.verdict is not None:
                self._judge(self._look.verdict)
        elif time.monotonic() >= self._next_look and not self._still_sends():
            self._look = _Look(self._peer, end=self._suspected)

    def _still_sends(self) -> bool:
        """Whether a slow line has taken some of our bytes since the last time: then the server has not all of them."""
        before, self._unsent = self._unsent, _unsent_bytes(self._conn)
        if 0 < self._unsent != before:
            self._next_look = time.monotonic() + self.patience_s / 3
            return True
        return False

    def _judge(self, verdict: Verdict) -> None:
        assert self._peer is not None
        self._look = None
        if verdict in (Verdict.WORKING, Verdict.UNKNOWN):
            self._suspected = False
            self._next_look = time.monotonic() + self.patience_s
        elif verdict is not Verdict.GONE and not self._suspected:
            # It may just have answered.
            self._suspected = True
            self._next_look = time.monotonic() + self.patience_s / 3
        else:
            sever(self._conn)
            with contextlib.suppress(psycopg.Error):
                self._conn.pgconn.consume_input()  # so that libpq knows, too
            raise psycopg.OperationalError(
                f"session “{self._peer.purpose}” had no answer for {self.seconds:.0f} s: {verdict.value}"
            )


class _Look:
    """One look at the server's end, in a thread. ``verdict`` is None until it is done."""

    def __init__(self, peer: Peer, *, end: bool) -> None:
        """``end``: should it wait for us, end it, so that it lets go of its locks."""
        self.verdict: Verdict | None = None
        self._peer, self._end = peer, end
        threading.Thread(target=self._run, name="look", daemon=True).start()

    def _run(self) -> None:
        try:
            self.verdict = _look(self._peer, end=self._end)
        except psycopg.Error as exc:
            # With FATAL the server itself has spoken.
            self.verdict = Verdict.UNKNOWN if exc.sqlstate or "FATAL" in str(exc) else Verdict.UNREACHABLE
        finally:
            self.verdict = self.verdict or Verdict.UNKNOWN


def _look(peer: Peer, *, end: bool) -> Verdict:
    with contextlib.closing(_Bounded.connect(peer.look_conninfo, autocommit=True, prepare_threshold=None)) as conn:
        rows = conn.execute(
            "SELECT wait_event_type FROM pg_catalog.pg_stat_activity WHERE pid = %s"
            " AND backend_start = coalesce(%s, backend_start)",
            (peer.pid, peer.backend_start),
        ).fetchall()
        if not rows:
            return Verdict.GONE
        # A WAL sender that waits for WAL is at an Activity or a Client event, depending on the version.
        if rows[0][0] not in ("Client", "Activity"):
            return Verdict.WORKING
        if end:
            conn.execute("SELECT pg_catalog.pg_terminate_backend(%s)", (peer.pid,))
        return Verdict.WAITING


class _Bounded(Connection):
    """A connection that fails when an answer takes too long."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        return super().wait(_bounded(gen, time.monotonic() + LOOK_TIMEOUT_S), *args, **kwargs)


def _bounded(gen: Generator[Any, Any, T], deadline: float) -> Generator[Any, Any, T]:
    try:
        state = next(gen)
        while True:
            ready = yield state
            if not ready and time.monotonic() > deadline:
                raise psycopg.OperationalError("no answer in time")
            state = gen.send(ready)
    except StopIteration as stop:
        value: T = stop.value
        return value


def wait_readable(conn: Connection, *, or_writable: bool = False) -> bool:
    """Wait until libpq can read from the connection, or write to it; whether it can read. For code below psycopg.

    Raises:
        psycopg.OperationalError: the server's end of the session is gone, or waits too.
    """
    line = conn.pgconn.socket
    silence = None
    while True:
        readable, writable, _ = select.select([line], [line] if or_writable else [], [], 1.0)
        if readable or writable:
            return bool(readable)
        if silence is None:
            silence = Silence(conn)
        silence.check()


def sever(conn: Connection) -> None:
    """Cut a connection, also one that another thread uses: what it waits for fails. Needs no answer of the server."""
    with (
        contextlib.suppress(OSError, psycopg.Error),  # closed already
        socket.socket(fileno=os.dup(conn.fileno())) as twin,
    ):
        twin.shutdown(socket.SHUT_RDWR)


def _unsent_bytes(conn: Connection) -> int:
    try:
        return int(struct.unpack("i", fcntl.ioctl(conn.fileno(), _SIOCOUTQ, bytes(4)))[0])
    except (OSError, psycopg.Error):
        return 0  # another system than Linux, or closed
