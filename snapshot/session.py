"""Sessions of copying threads and processes: they read one snapshot, and somebody else can end them."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import errors, sql

from replicator.errors import TransientError
from replicator.postgres.connection import Connection, Side, connect, sever

_lock = threading.Lock()
_open: defaultdict[str, set[Connection]] = defaultdict(set)
_ended: set[str] = set()


@contextmanager
def session(run: str, dsn: str, side: Side, purpose: str) -> Iterator[Connection]:
    """A session that `interrupt` ends. Leaving the block closes it, and so undoes what was not committed."""
    with contextlib.closing(connect(dsn, side, purpose=purpose)) as conn:
        with _lock:
            if run in _ended:
                raise TransientError("the snapshot was interrupted")
            _open[run].add(conn)
        try:
            yield conn
        finally:
            with _lock:
                _open[run].discard(conn)


def begin_reading(conn: Connection, snapshot_name: str) -> None:
    """Open a read-only transaction that sees the exported snapshot.

    Raises:
        TransientError: the snapshot is gone, since the session that held it is.
    """
    conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        conn.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot_name)))
    except (errors.InvalidParameterValue, errors.UndefinedObject, errors.ObjectNotInPrerequisiteState) as exc:
        raise TransientError("source: the exported snapshot is gone, since the session that held it ended") from exc


def interrupt(run: str) -> None:
    """End all sessions of ``run`` in this process, now and later."""
    with _lock:
        _ended.add(run)
        for conn in _open[run]:
            sever(conn)


def forget(run: str) -> None:
    """The run is over: keep nothing of it."""
    with _lock:
        _ended.discard(run)
        _open.pop(run, None)
