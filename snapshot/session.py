"""Sessions of copying threads and processes: they read one snapshot, stay open from task to task, and can be ended."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from psycopg import errors, pq, sql

from replicator.errors import TransientError
from replicator.postgres.connection import Connection, Side, connect, sever
from replicator.postgres.session import Session

_lock = threading.Lock()
_open: defaultdict[str, set[Session]] = defaultdict(set)
_ended: set[str] = set()


@dataclass(frozen=True, slots=True)
class Run:
    """What all tasks of one run share. Plain data: it travels to other processes."""

    name: str  # see `interrupt`
    source_dsn: str = field(repr=False)
    target_dsn: str = field(repr=False)
    slot: str
    keeps_sessions: bool  # `forget` will close what its tasks leave open

    def dsn(self, side: Side) -> str:
        """Where that side is."""
        return self.source_dsn if side == "source" else self.target_dsn


class _Kept(threading.local):
    """Of each thread, by run and side: the session that its next task finds."""

    def __init__(self) -> None:
        self.sessions: dict[tuple[str, Side], Session] = {}


_kept = _Kept()


@contextmanager
def session(run: Run, side: Side, work: str) -> Iterator[Session]:
    """This thread's session on one side, which `interrupt` ends. An error closes it, and so undoes its transaction.

    A run of 160 small tables opened 500 of them before they were kept. ``work`` shows in ``pg_stat_activity``.
    """
    purpose = f"{work} {run.slot}"
    conn = _kept.sessions.pop((run.name, side), None)
    if conn is None:
        conn = _opened(run, side, purpose)
    else:
        _rename(conn, purpose)
    try:
        yield conn
    except BaseException:
        _close(run.name, conn)
        raise
    if run.keeps_sessions:
        _kept.sessions[run.name, side] = conn
    else:
        _close(run.name, conn)


def _opened(run: Run, side: Side, purpose: str) -> Session:
    conn = connect(run.dsn(side), side, purpose=purpose)
    with _lock:
        if run.name not in _ended:
            _open[run.name].add(conn)
            return conn
    conn.close()
    raise TransientError("the snapshot was interrupted")


def _rename(conn: Session, purpose: str) -> None:
    if conn.peer is not None and conn.peer.purpose != purpose:
        conn.execute(sql.SQL("SET application_name = {}").format(sql.Literal(f"replicator {purpose}"[:63])))
        conn.peer = replace(conn.peer, purpose=purpose)


def _close(run: str, conn: Session) -> None:
    with _lock:
        _open[run].discard(conn)
    conn.close()


def begin_reading(conn: Connection, snapshot_name: str) -> None:
    """Open a read-only transaction that sees the exported snapshot, unless this session is in it already.

    Raises:
        TransientError: the snapshot is gone, since the session that held it is.
    """
    if conn.info.transaction_status == pq.TransactionStatus.INTRANS:
        return
    try:
        conn.execute(
            sql.SQL("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}").format(
                sql.Literal(snapshot_name)
            )
        )
    except (errors.InvalidParameterValue, errors.UndefinedObject, errors.ObjectNotInPrerequisiteState) as exc:
        raise TransientError("source: the exported snapshot is gone, since the session that held it ended") from exc


def interrupt(run: str) -> None:
    """End all sessions of ``run`` in this process, now and later."""
    with _lock:
        _ended.add(run)
        for conn in _open[run]:
            sever(conn)


def forget(run: str) -> None:
    """The run is over, and none of its tasks is left: close what they kept."""
    with _lock:
        _ended.discard(run)
        left = _open.pop(run, set())
    for conn in left:
        conn.close()


def forget_all() -> None:
    """This process is about to end in order: the servers are told, instead of finding out."""
    for run in list(_open):
        with contextlib.suppress(OSError):
            forget(run)
