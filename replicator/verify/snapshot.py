"""A snapshot of each side, shared by several sessions; the target's holds all that the source's does."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Final, Self

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from replicator.config import Settings
from replicator.errors import Refused, StateError
from replicator.model.lsn import ZERO, Lsn
from replicator.postgres.connection import Connection, Side, connect, query, translated
from replicator.routing.idmap import IdMaps
from replicator.source.messages import emit_heartbeat
from replicator.target import state
from replicator.target.idmaps import load_maps

_HEARTBEAT_S: Final = 1.0
_FIRST_POLL_S: Final = 0.01
_LONGEST_POLL_S: Final = 0.2
_CANCEL_S: Final = 5.0
_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class Sessions:
    """One session on each side, opened when first needed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._open: dict[Side, Connection] = {}

    def get(self, side: Side) -> Connection:
        """The session of a side, in autocommit mode."""
        if side not in self._open:
            dsn = self.settings.source.dsn if side == "source" else self.settings.target.dsn
            self._open[side] = connect(dsn, side, purpose="verify")
        return self._open[side]

    def end(self, side: Side) -> None:
        """End the session's transaction; close the session if it is in the middle of a statement."""
        conn = self.get(side)
        if conn.info.transaction_status is TransactionStatus.INTRANS:
            with translated(side):
                conn.execute("COMMIT")
        else:
            self._open.pop(side).close()

    def cancel(self) -> None:
        """End the statements that run in another thread, which gets an error."""
        for conn in list(self._open.values()):
            with suppress(psycopg.Error):  # it was closed meanwhile
                conn.cancel_safe(timeout=_CANCEL_S)

    def close(self) -> None:
        """Close what is open, whatever it is doing."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Follower:
    """Waits until the running stream, that of every lane, has brought the target to a position of the source."""

    def __init__(self, sessions: Sessions, slots: Collection[str], *, timeout_s: float, stop: threading.Event) -> None:
        self._sessions = sessions
        self._slots = slots
        self._timeout_s = timeout_s
        self._stop = stop

    def wait_for_now(self) -> Lsn:
        """Wait until everything that is committed on the source now is on the target; where that was."""
        lsn = current_lsn(self._sessions.get("source"))
        self.wait_for(lsn)
        return lsn

    def wait_for(self, lsn: Lsn) -> None:
        """Wait until every checkpoint has reached ``lsn``. Heartbeats make an idle source's stream get there.

        Raises:
            StateError: it stands still for too long.
            Refused: verification was stopped meanwhile.
        """
        for slot in self._slots:
            self._wait_for_lane(slot, lsn)

    def _wait_for_lane(self, slot: str, lsn: Lsn) -> None:
        target = self._sessions.get("target")
        moved_at = beat_at = time.monotonic()
        before, pause_s = ZERO, _FIRST_POLL_S
        while (applied := _applied_lsn(target, slot)) < lsn:
            now = time.monotonic()
            if applied != before:
                before, moved_at = applied, now
            elif now - moved_at > self._timeout_s:
                raise StateError(
                    f"the stream of slot {slot} does not advance: its checkpoint has been at {applied} for "
                    f"{self._timeout_s:.0f} s, and {lsn} is to be reached",
                    hint="`replicator status` tells why; stop the service to compare both sides as they are",
                )
            if now >= beat_at:
                self._beat()
                beat_at = now + _HEARTBEAT_S
            if self._stop.wait(pause_s):
                raise Refused("verification was stopped before its end")
            pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)

    def _beat(self) -> None:
        source = self._sessions.get("source")
        with translated("source"), source.transaction():
            emit_heartbeat(source)
            # A transaction with an ID flushes the WAL at its commit: the message need not wait for the WAL writer.
            source.execute("SELECT pg_catalog.pg_current_xact_id()")


class SnapshotPair:
    """Both sides at one position: the target's snapshot is taken once the stream has reached the source's.

    Without a `follower` the target is taken as it is.
    """

    def __init__(self, settings: Settings, follower: Follower | None) -> None:
        self._settings = settings
        self._stack = ExitStack()
        self._snapshots: dict[Side, str] = {}
        holders = self._stack.enter_context(Sessions(settings))
        try:
            self.lsn = self._hold("source", holders.get("source"))
            if follower is not None:
                follower.wait_for(self.lsn)
            self._hold("target", holders.get("target"))
        except BaseException:
            self._stack.close()
            raise
        self.target = holders.get("target")

    @contextmanager
    def transaction(self, sessions: Sessions) -> Iterator[None]:
        """Read inside the two snapshots. On leaving, the locks of the tables read are released.

        One for each table: nobody's TRUNCATE or ALTER TABLE shall wait for the whole verification. Sessions that are
        left in the middle of a COPY, after an error or since enough was read, are closed.
        """
        try:
            for side, snapshot in self._snapshots.items():
                with translated(side):
                    conn = sessions.get(side)
                    conn.execute(_BEGIN)
                    conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
            yield
            for side in self._snapshots:
                sessions.end(side)
        except BaseException:
            sessions.close()
            raise

    def close(self) -> None:
        """Let the snapshots go."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _hold(self, side: Side, conn: Connection) -> Lsn:
        with translated(side):
            conn.execute(_BEGIN)
            [(self._snapshots[side],)] = query(conn, "SELECT pg_catalog.pg_export_snapshot()")
            return current_lsn(conn) if side == "source" else ZERO


def current_lsn(source: Connection) -> Lsn:
    """Where the source is: behind everything that a statement of this session has seen so far.

    The insert position: the commit of an asynchronous transaction is seen before it is written.
    """
    with translated("source"):
        [(lsn,)] = query(
            source,
            """
            SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                    ELSE pg_catalog.pg_current_wal_insert_lsn() END)::text
            """,
        )
    return Lsn.parse(lsn)


def read_maps(target: Connection, names: set[str]) -> IdMaps:
    """The ID maps of these names as this session sees them; empty ones where the target has no state of ours."""
    with translated("target"):
        if not names or not state.exists(target):
            return IdMaps()
        return load_maps(target, names)


def _applied_lsn(target: Connection, slot: str) -> Lsn:
    with translated("target"):
        checkpoint = state.load_checkpoint(target, slot)
    return checkpoint.applied_lsn if checkpoint is not None else ZERO
