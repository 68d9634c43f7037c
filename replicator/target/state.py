"""The replicator's state in schema ``replicator`` of the target: checkpoint, table states, the writer's lock.

The commands talk to the running service only through this schema, so they work from any host and survive restarts.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import LiteralString, cast

from psycopg.types.json import Jsonb

from replicator.errors import StateError
from replicator.model.lsn import Lsn
from replicator.model.schema import TableName, show_table
from replicator.postgres.connection import Connection, query, translated
from replicator.routing.record import TableRecord

PHASES = ("new", "copying", "catching_up", "streaming", "cutting_over", "cut_over")

# The first key of our advisory locks: "repl" as a big-endian integer.
_LOCK_CLASS = 0x7265706C


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far the target is: the row of ``replicator.checkpoint``."""

    slot: str
    applied_lsn: Lsn  # end of the last applied commit
    commit_time: dt.datetime | None
    system_identifier: str
    database: str
    phase: str
    fence: str | None
    lag_seconds: float | None
    problem: str | None
    map_version: int
    updated_at: dt.datetime
    timeline: int | None  # of the source, that applied_lsn counts on; None: not known


@dataclass(frozen=True, slots=True)
class TableState:
    """One row of ``replicator.table_state``; ``name`` is the target table."""

    name: TableName
    state: str
    attempt: int
    snapshot_lsn: Lsn | None
    record: TableRecord | None
    published: int | None  # OID of its entry in the publication, then
    rows_copied: int
    bytes_copied: int
    rows_applied: int
    differences: int | None  # of the last verification; None: not verified yet


def migrate(conn: Connection) -> None:
    """Bring schema ``replicator`` to this version's shape; safe to call at every start and from several processes."""
    with translated("target"), conn.transaction():
        conn.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s, 0)", (_LOCK_CLASS,))
        done: set[int] = set()
        if exists(conn):
            done = {version for (version,) in query(conn, "SELECT version FROM replicator.migration")}
        scripts = sorted(files("replicator.target").joinpath("migrations").iterdir(), key=lambda path: path.name)
        for script in scripts:
            version = int(script.name.split("_")[0])
            if version not in done:
                conn.execute(cast(LiteralString, script.read_text("utf-8")))  # type: ignore[redundant-cast]
                conn.execute("INSERT INTO replicator.migration (version) VALUES (%s)", (version,))


def exists(conn: Connection) -> bool:
    """Whether this target has our state."""
    [(found,)] = query(conn, "SELECT pg_catalog.to_regclass('replicator.migration') IS NOT NULL")
    return bool(found)


def drop(conn: Connection) -> None:
    """Remove schema ``replicator`` with everything in it."""
    conn.execute("DROP SCHEMA IF EXISTS replicator CASCADE")


def try_lock(conn: Connection, name: str) -> bool:
    """Take the advisory lock of this name for as long as the session lives; False if another session holds it."""
    [(locked,)] = query(conn, "SELECT pg_catalog.pg_try_advisory_lock(%s, pg_catalog.hashtext(%s))", _LOCK_CLASS, name)
    return bool(locked)


def lock_writer(conn: Connection, slot: str) -> None:
    """Become the only writer for ``slot``, for as long as this session lives.

    Raises:
        StateError: another replicator holds the lock.
    """
    if not try_lock(conn, slot):
        raise StateError(
            f"another replicator is already running for slot {slot}",
            hint="stop it first, or watch it with `replicator status`",
        )


def writer_is_running(conn: Connection, slot: str) -> bool:
    """Whether some session of this database holds the writer's lock for ``slot``."""
    [(running,)] = query(
        conn,
        """
        SELECT EXISTS (
            SELECT FROM pg_catalog.pg_locks
            WHERE locktype = 'advisory' AND granted AND objsubid = 2
              AND classid = %s::bigint::oid AND objid = (pg_catalog.hashtext(%s)::bigint & 4294967295)::oid
              AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))
        """,
        _LOCK_CLASS,
        slot,
    )
    return bool(running)


def load_waits(conn: Connection, slot: str, longer_than_s: float) -> list[str]:
    """Tables that the writer for ``slot`` has been waiting for, and who has locked them; one line each."""
    rows = query(
        conn,
        """
        SELECT n.nspname::text, c.relname::text, extract(epoch FROM clock_timestamp() - l.waitstart)::float8, (
            SELECT pg_catalog.string_agg(
                'process ' || a.pid || coalesce(' (' || nullif(a.application_name, '') || ')', ''), ', ')
            FROM pg_catalog.pg_stat_activity a WHERE a.pid = ANY (pg_catalog.pg_blocking_pids(l.pid)))
        FROM pg_catalog.pg_locks w
        JOIN pg_catalog.pg_locks l ON l.pid = w.pid AND NOT l.granted AND l.locktype = 'relation'
        JOIN pg_catalog.pg_class c ON c.oid = l.relation
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE w.locktype = 'advisory' AND w.granted AND w.objsubid = 2
          AND w.classid = %s::bigint::oid AND w.objid = (pg_catalog.hashtext(%s)::bigint & 4294967295)::oid
          AND w.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
          AND l.waitstart < clock_timestamp() - make_interval(secs => %s)
        """,
        _LOCK_CLASS,
        slot,
        longer_than_s,
    )
    return [
        f"the service waits for table {show_table((schema, name))} of the target, which {blockers or 'somebody'} "
        f"has locked: for {seconds:.0f} s now"
        for schema, name, seconds, blockers in rows
    ]


def load_checkpoint(conn: Connection, slot: str) -> Checkpoint | None:
    """The checkpoint of ``slot``; None before the first snapshot began."""
    rows = query(
        conn,
        """
        SELECT slot, applied_lsn::text, commit_time, system_identifier, database, phase, fence, lag_seconds, problem,
               map_version, updated_at, timeline
        FROM replicator.checkpoint WHERE slot = %s
        """,
        slot,
    )
    for name, lsn, *rest in rows:
        return Checkpoint(name, Lsn.parse(lsn), *rest)
    return None


def announce_checkpoint(conn: Connection, slot: str, system_identifier: str, database: str) -> None:
    """Record, in phase ``new``, that we are about to create the slot: if it is there after a crash, it is ours."""
    conn.execute(
        """
        INSERT INTO replicator.checkpoint (slot, applied_lsn, system_identifier, database, phase)
        VALUES (%s, '0/0', %s, %s, 'new')
        """,
        (slot, system_identifier, database),
    )


def withdraw_checkpoint(conn: Connection, slot: str) -> None:
    """Take an announcement back: the slot turned out to be somebody else's."""
    conn.execute("DELETE FROM replicator.checkpoint WHERE slot = %s AND phase = 'new'", (slot,))


def create_checkpoint(conn: Connection, slot: str, lsn: Lsn, system_identifier: str, database: str) -> None:
    """Record a slot's consistent point, in phase ``copying``: from here on the stream is ours to apply."""
    conn.execute(
        """
        INSERT INTO replicator.checkpoint (slot, applied_lsn, system_identifier, database, phase)
        VALUES (%s, %s::pg_lsn, %s, %s, 'copying')
        ON CONFLICT (slot) DO UPDATE
        SET applied_lsn = excluded.applied_lsn, phase = excluded.phase, updated_at = clock_timestamp()
        WHERE checkpoint.phase = 'new'
        """,
        (slot, str(lsn), system_identifier, database),
    )


def set_phase(conn: Connection, slot: str, phase: str, *, only_from: str | None = None) -> None:
    """Move to another phase; with ``only_from`` not if somebody else has moved it on meanwhile."""
    conn.execute(
        """
        UPDATE replicator.checkpoint SET phase = %s, updated_at = clock_timestamp()
        WHERE slot = %s AND phase = coalesce(%s, phase)
        """,
        (phase, slot, only_from),
    )


def set_timeline(conn: Connection, slot: str, timeline: int) -> None:
    """Note the source's timeline: what is applied was found to be part of it."""
    conn.execute(
        "UPDATE replicator.checkpoint SET timeline = %s WHERE slot = %s AND timeline IS DISTINCT FROM %s",
        (timeline, slot, timeline),
    )


def set_problem(conn: Connection, slot: str, problem: str | None) -> None:
    """Tell `status` why the service is not getting on; None: all is well again."""
    conn.execute("UPDATE replicator.checkpoint SET problem = %s WHERE slot = %s", (problem, slot))


def load_table_states(conn: Connection, slot: str) -> dict[TableName, TableState]:
    """The state of every table of ``slot``, by target table."""
    rows = query(
        conn,
        """
        SELECT table_schema, table_name, state, attempt, snapshot_lsn::text, record, published, rows_copied,
               bytes_copied, rows_applied, differences
        FROM replicator.table_state WHERE slot = %s ORDER BY table_schema, table_name
        """,
        slot,
    )
    return {
        (schema, name): TableState(
            (schema, name),
            state,
            attempt,
            Lsn.parse(lsn) if lsn else None,
            TableRecord.from_json(record) if record else None,
            *rest,
        )
        for schema, name, state, attempt, lsn, record, *rest in rows
    }


def load_all_tables(conn: Connection) -> set[TableName]:
    """The target tables of all slots; none while there is no state."""
    return set(query(conn, "SELECT table_schema, table_name FROM replicator.table_state")) if exists(conn) else set()


def are_copied(conn: Connection, slot: str, names: Collection[TableName]) -> bool:
    """Whether every one of these tables is known and copied."""
    [(count,)] = query(
        conn,
        """
        SELECT count(*) FROM replicator.table_state JOIN unnest(%s::text[], %s::text[]) AS w (table_schema, table_name)
                             USING (table_schema, table_name)
        WHERE slot = %s AND state = 'copied'
        """,
        *_columns(names),
        slot,
    )
    return bool(count == len(names))


def add_table_states(conn: Connection, slot: str, names: Iterable[TableName]) -> None:
    """Enter tables that are not known yet as ``pending``."""
    conn.cursor().executemany(
        """
        INSERT INTO replicator.table_state (slot, table_schema, table_name, state) VALUES (%s, %s, %s, 'pending')
        ON CONFLICT DO NOTHING
        """,
        [(slot, schema, name) for schema, name in names],
    )


def reopen_tables(conn: Connection, slot: str, names: Iterable[TableName]) -> None:
    """Enter tables as half-copied before they are emptied: waits for copies that still run, bars later ones."""
    conn.execute(
        """
        UPDATE replicator.table_state SET state = 'copying', attempt = attempt + 1
        WHERE slot = %s AND (table_schema, table_name) IN (SELECT s, t FROM unnest(%s::text[], %s::text[]) AS w (s, t))
        """,
        (slot, *_columns(sorted(names))),
    )


def start_tables(
    conn: Connection, slot: str, snapshot_lsn: Lsn, tables: Iterable[tuple[TableName, TableRecord, int | None]]
) -> dict[TableName, int]:
    """Enter tables as being copied from the snapshot taken at ``snapshot_lsn``; for each the number of this attempt.

    Args:
        tables: each with the record of both its sides as they are copied, and the OID of its entry in the publication.
    """
    names, records, published = zip(*tables, strict=True)
    rows = query(
        conn,
        """
        UPDATE replicator.table_state t
        SET state = 'copying', attempt = attempt + 1, snapshot_lsn = %s::pg_lsn, record = n.record,
            published = n.published, rows_copied = 0, bytes_copied = 0, started_at = clock_timestamp(),
            finished_at = NULL
        FROM unnest(%s::text[], %s::text[], %s::jsonb[], %s::bigint[])
             AS n (table_schema, table_name, record, published)
        WHERE t.slot = %s AND t.table_schema = n.table_schema AND t.table_name = n.table_name
        RETURNING t.table_schema, t.table_name, t.attempt
        """,
        str(snapshot_lsn),
        *_columns(names),
        [Jsonb(record.to_json()) for record in records],
        list(published),
        slot,
    )
    return {(schema, name): int(attempt) for schema, name, attempt in rows}


def store_record(conn: Connection, slot: str, name: TableName, record: TableRecord) -> None:
    """Note that a table was accepted as it is now."""
    conn.execute(
        "UPDATE replicator.table_state SET record = %s WHERE slot = %s AND table_schema = %s AND table_name = %s",
        (Jsonb(record.to_json()), slot, *name),
    )


def rename_table(conn: Connection, slot: str, old: TableName, new: TableName) -> None:
    """Note that a table of the target is called otherwise now."""
    conn.execute(
        """
        UPDATE replicator.table_state SET table_schema = %s, table_name = %s
        WHERE slot = %s AND table_schema = %s AND table_name = %s
        """,
        (*new, slot, *old),
    )


def finish_tables(conn: Connection, slot: str, copied: Mapping[TableName, tuple[int, int]]) -> None:
    """Enter tables as copied: all their rows are committed; of each the number and their bytes."""
    conn.execute(
        """
        UPDATE replicator.table_state t
        SET state = 'copied', rows_copied = n.rows, bytes_copied = n.bytes, finished_at = clock_timestamp()
        FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[]) AS n (table_schema, table_name, rows, bytes)
        WHERE t.slot = %s AND t.table_schema = n.table_schema AND t.table_name = n.table_name
        """,
        (*_columns(copied), [rows for rows, _ in copied.values()], [size for _, size in copied.values()], slot),
    )


def hold_attempts(conn: Connection, slot: str, names: Collection[TableName]) -> dict[TableName, int]:
    """The current attempt of each table that is known, which cannot be raised before this transaction ends."""
    rows = query(
        conn,
        """
        SELECT table_schema, table_name, attempt FROM replicator.table_state
        WHERE slot = %s AND (table_schema, table_name) IN (SELECT s, t FROM unnest(%s::text[], %s::text[]) AS w (s, t))
        ORDER BY table_schema, table_name FOR SHARE
        """,
        slot,
        *_columns(names),
    )
    return {(schema, name): int(attempt) for schema, name, attempt in rows}


def _columns(names: Iterable[TableName]) -> tuple[list[str], list[str]]:
    pairs = list(names)
    return [schema for schema, _ in pairs], [name for _, name in pairs]


def record_differences(conn: Connection, slot: str, differences: Mapping[TableName, int]) -> None:
    """Note what a verification found, for `status` and the metrics of the service."""
    conn.cursor().executemany(
        """
        UPDATE replicator.table_state SET differences = %s
        WHERE slot = %s AND table_schema = %s AND table_name = %s
        """,
        [(count, slot, schema, name) for (schema, name), count in differences.items()],
    )


def add_rows_applied(conn: Connection, slot: str, rows: Mapping[TableName, int]) -> None:
    """Add to the counts of applied changes."""
    conn.execute(
        """
        UPDATE replicator.table_state t SET rows_applied = rows_applied + n.rows
        FROM unnest(%s::text[], %s::text[], %s::bigint[]) AS n (table_schema, table_name, rows)
        WHERE t.slot = %s AND t.table_schema = n.table_schema AND t.table_name = n.table_name
        """,
        (*_columns(rows), list(rows.values()), slot),
    )
