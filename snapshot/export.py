"""The exported snapshot: what all workers read, held by one session of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replicator.errors import TransientError
from replicator.logs import get_logger
from replicator.model.lsn import Lsn
from replicator.model.schema import Table
from replicator.postgres.connection import Connection, connect, query, sever, table_identifier, translated
from replicator.source.slot import create_slot
from snapshot.session import begin_reading

_log = get_logger(__name__)

_POLL_S = 0.2
_CANCEL_TIMEOUT_S = 1.0
# Then the server hangs, and waiting for it is no orderly end either.
_PATIENCE_S = 4.0


@dataclass(frozen=True, slots=True)
class ExportedSnapshot:
    """A consistent point and a session whose open transaction sees the source as of it.

    The slot's own snapshot dies with the next command on its replication session. So the holder imports it and exports
    it again under a name that lives as long as its transaction; then the replication session is let go. The holder
    keeps the tables locked against ALTER and TRUNCATE (ACCESS SHARE): a table rewritten later would look empty.
    """

    lsn: Lsn  # what committed before is in the snapshot, the rest is in the stream
    name: str  # for SET TRANSACTION SNAPSHOT
    holder: Connection


@contextmanager
def export_snapshot(
    dsn: str, slot: str, tables: Collection[Table], *, temporary: bool, failover: bool, stop: threading.Event
) -> Iterator[ExportedSnapshot]:
    """Create ``slot`` and hold its snapshot until the end of the block.

    A temporary slot serves only to tie a snapshot to an LSN: it is gone before the block begins.

    Raises:
        StateError: the slot's name is taken.
        TransientError: a table changed its shape at this very moment, or ``stop`` was set: try again.
    """
    with contextlib.closing(connect(dsn, "source", purpose="snapshot")) as holder:
        with (
            contextlib.closing(connect(dsn, "source", purpose="slot", replication=True)) as session,
            cancelled_by(stop, session, holder),
            translated("source"),
        ):
            _log.info("taking a snapshot once the transactions that are writing now have ended", slot=slot)
            created = create_slot(session, slot, temporary=temporary, failover=failover)
            begin_reading(holder, created.snapshot_name)
            _lock(holder, tables)
            _refuse_changed(holder, tables)
            [(name,)] = query(holder, "SELECT pg_catalog.pg_export_snapshot()")
        yield ExportedSnapshot(created.consistent_point, name, holder)


def _lock(conn: Connection, tables: Collection[Table]) -> None:
    names = sql.SQL(", ").join(
        sql.SQL("{}" if table.kind == "p" else "ONLY {}").format(table_identifier(table.name)) for table in tables
    )
    conn.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))


def _refuse_changed(conn: Connection, tables: Collection[Table]) -> None:
    """Between the consistent point and the lock a table may have been rewritten, and since planning, altered."""
    rows = query(
        conn,
        """
        SELECT c.oid::bigint, n.nspname::text, c.relname::text,
               -- a query sees the catalog of the snapshot, the function the present one
               NOT EXISTS (
                   SELECT FROM pg_catalog.pg_class l
                   WHERE (l.oid = c.oid OR l.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(c.oid)))
                     AND l.relkind = 'r' AND l.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(l.oid)),
               ARRAY(SELECT pg_catalog.concat_ws(' ', a.attnum, a.atttypid, a.atttypmod, a.attname)
                     FROM pg_catalog.pg_attribute a
                     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = ANY (%s::oid[])
        """,
        [table.oid for table in tables],
    )
    found = {oid: (same_file, (schema, name), tuple(columns)) for oid, schema, name, same_file, columns in rows}
    for table in tables:
        columns = tuple(f"{each.attnum} {each.type.oid} {each.typmod} {each.name}" for each in table.columns)
        if found.get(table.oid) != (True, table.name, columns):
            raise TransientError(f"table {table} was altered on the source while the snapshot was being taken")


@contextmanager
def cancelled_by(stop: threading.Event, *connections: Connection) -> Iterator[None]:
    """Within the block, ``stop`` cancels whatever the connections execute: it fails with TransientError.

    Connections to a server that does not answer are cut.
    """
    left = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if left.wait(_POLL_S):
                return
        deadline = time.monotonic() + _PATIENCE_S
        while not left.wait(_POLL_S):
            for conn in connections:
                if time.monotonic() < deadline:
                    with contextlib.suppress(psycopg.Error):
                        conn.cancel_safe(timeout=_CANCEL_TIMEOUT_S)
                else:
                    sever(conn)

    watcher = threading.Thread(target=watch, name="snapshot stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        left.set()
        watcher.join()
