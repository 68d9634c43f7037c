"""Our logical replication slot on the source: create, look at, drop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from psycopg import errors, sql

from replicator.errors import NEW_SNAPSHOT, SlotLost, StateError
from replicator.model.lsn import Lsn
from replicator.postgres.connection import Connection, query, translated

_DROP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """One row of ``pg_replication_slots``."""

    name: str
    plugin: str
    database: str
    active: bool
    active_pid: int | None
    wal_status: str  # reserved | extended | unreserved | lost
    confirmed_flush_lsn: Lsn | None
    restart_lsn: Lsn | None
    retained_bytes: int  # WAL kept for the slot; 0 once it is lost
    safe_bytes: int | None  # WAL that may still be written before it can be lost; None: no limit
    two_phase: bool
    invalidation_reason: str | None  # server 17+
    failover: bool  # the source's standbys keep it too (server 17+)
    idle_seconds_left: float | None  # until idle_replication_slot_timeout may end it (server 18+); None: never

    @property
    def is_lost(self) -> bool:
        """The server has removed WAL that the slot needs, or invalidated it otherwise."""
        return self.wal_status == "lost" or self.invalidation_reason is not None

    @property
    def why_lost(self) -> str:
        """What has become of a slot that `is_lost`, and the setting to look at before starting over."""
        reason = self.invalidation_reason or "wal_removed"
        return _WHY_LOST.get(reason, f"the source has invalidated it ({reason})")


_WHY_LOST: Final = {
    "wal_removed": "the source has removed WAL that it needs (raise max_slot_wal_keep_size first)",
    "idle_timeout": "nobody read it for idle_replication_slot_timeout (set that to 0 first)",
    "rows_removed": "the source has removed catalog rows that it needs",
    "wal_level_insufficient": "the source's wal_level was lowered (set it to logical first)",
}


@dataclass(frozen=True, slots=True)
class CreatedSlot:
    """What CREATE_REPLICATION_SLOT returned: the snapshot holds all that committed before ``consistent_point``."""

    consistent_point: Lsn
    snapshot_name: str


def load_slot(conn: Connection, name: str) -> SlotInfo | None:
    """The slot of this name, None if there is none. Physical slots count: the name is taken all the same."""
    rows = query(
        conn,
        """
        SELECT slot_name::text, coalesce(plugin, '')::text, coalesce(database, '')::text, active, active_pid,
               coalesce(wal_status, 'lost'), confirmed_flush_lsn::text, restart_lsn::text,
               coalesce(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn), 0)::bigint,
               safe_wal_size, coalesce(two_phase, false),
               pg_catalog.to_jsonb(s) ->> 'invalidation_reason',  -- a column since 17, as is the next
               coalesce((pg_catalog.to_jsonb(s) ->> 'failover')::boolean, false),
               CASE WHEN t.idle > '0' THEN  -- inactive_since: a column since 17
                   greatest(extract(epoch FROM (pg_catalog.to_jsonb(s) ->> 'inactive_since')::timestamptz
                                               + t.idle - clock_timestamp()), 0)::float8 END
        FROM pg_catalog.pg_replication_slots s,
             (SELECT coalesce(pg_catalog.current_setting('idle_replication_slot_timeout', true), '0')::interval)
             AS t (idle)
        WHERE slot_name = %s
        """,
        name,
    )
    for slot_name, plugin, database, active, pid, wal_status, confirmed, restart, retained, safe, *rest in rows:
        two_phase, reason, failover, idle_left = rest
        return SlotInfo(
            name=slot_name,
            plugin=plugin,
            database=database,
            active=active,
            active_pid=pid,
            wal_status=wal_status,
            confirmed_flush_lsn=Lsn.parse(confirmed) if confirmed else None,
            restart_lsn=Lsn.parse(restart) if restart else None,
            retained_bytes=max(retained, 0),
            safe_bytes=None if safe is None else max(safe, 0),
            two_phase=two_phase,
            invalidation_reason=reason,
            failover=failover,
            idle_seconds_left=idle_left,
        )
    return None


def require_slot(conn: Connection, name: str, database: str, applied: Lsn | None) -> SlotInfo:
    """The slot that the checkpoint belongs to, able to stream from there on.

    From server 15 on, START_REPLICATION at a position that the slot has left behind silently starts at the slot's own,
    later one. So we look first.

    Args:
        database: the one that the slot was made in.
        applied: the checkpoint; None where a service moves it as we look.

    Raises:
        SlotLost: it is gone, lost, re-created, or past the checkpoint.
        StateError: the name belongs to a slot of another kind.
    """
    with translated("source"):
        slot = load_slot(conn, name)
    if slot is None:
        raise SlotLost(f"slot {name} is gone from the source", hint=NEW_SNAPSHOT)
    refuse_other_kind(slot, database)
    if slot.is_lost:
        raise SlotLost(f"slot {name} is lost: {slot.why_lost}", hint=NEW_SNAPSHOT)
    if applied is not None and slot.confirmed_flush_lsn is not None and slot.confirmed_flush_lsn > applied:
        raise SlotLost(
            f"slot {name} stands at {slot.confirmed_flush_lsn}, past our checkpoint {applied}: "
            "it was re-created or advanced by somebody else, or the target was restored to an earlier state",
            hint="changes in between cannot be had any more: " + NEW_SNAPSHOT,
        )
    return slot


def refuse_other_kind(slot: SlotInfo, database: str) -> None:
    """Make sure that a slot may be one that we made.

    Raises:
        StateError: another plugin or database, or a physical slot.
    """
    if slot.plugin != "pgoutput" or slot.database != database:
        raise StateError(
            f"slot {slot.name} is not the one that we made: it belongs to another plugin or database",
            hint="choose another name in [source] slot; our own slot of that name is gone, so then start over with "
            "`replicator run --truncate`",
        )


def create_slot(conn: Connection, name: str, *, temporary: bool = False, failover: bool = False) -> CreatedSlot:
    """Create a pgoutput slot and export its snapshot, which lives until ``conn`` runs its next command or closes.

    Waits for every transaction that is writing now to end.

    Args:
        conn: a session made with ``connect(…, replication=True)``.
        temporary: gone with the session.
        failover: let standbys keep it too; without effect on servers older than 17 and on temporary slots.

    Raises:
        StateError: the name is taken.

    Source: PostgreSQL docs, "Streaming Replication Protocol", CREATE_REPLICATION_SLOT.
    """
    statement = sql.SQL("CREATE_REPLICATION_SLOT {}{} LOGICAL pgoutput {}").format(
        sql.Identifier(name),
        sql.SQL(" TEMPORARY" if temporary else ""),
        sql.SQL(_options(conn.info.server_version, failover and not temporary)),
    )
    with translated("source"):
        try:
            row = conn.execute(statement).fetchone()
        except errors.DuplicateObject as exc:
            raise slot_exists(name) from exc
    assert row is not None
    return CreatedSlot(Lsn.parse(row[1]), row[2])


def _options(server_version: int, failover: bool) -> str:
    if server_version < 150000:
        return "EXPORT_SNAPSHOT"
    return "(SNAPSHOT 'export', FAILOVER true)" if failover and server_version >= 170000 else "(SNAPSHOT 'export')"


def alter_failover(conn: Connection, slot: SlotInfo, failover: bool) -> None:
    """Let an existing slot be kept by standbys too, or not; without effect on servers older than 17.

    Args:
        conn: a session made with ``connect(…, replication=True)``; nobody reads the slot.
    """
    if conn.info.server_version >= 170000 and slot.failover != failover:
        value = sql.SQL("true" if failover else "false")
        conn.execute(sql.SQL("ALTER_REPLICATION_SLOT {} (FAILOVER {})").format(sql.Identifier(slot.name), value))


def slot_exists(name: str) -> StateError:
    """The error for a name that is taken by a slot which we did not make."""
    return StateError(
        f"slot {name} already exists on the source and was not made for this target",
        hint="another replicator may need it: choose another name in [source] slot, or drop it with "
        f"SELECT pg_drop_replication_slot('{name}')",
    )


def end_creation(conn: Connection, name: str) -> None:
    """End a session of ours that is still creating the slot, or holds its snapshot, though its client is gone."""
    with translated("source"):
        conn.execute(
            """
            SELECT pg_catalog.pg_terminate_backend(a.pid)
            FROM pg_catalog.pg_replication_slots s JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
            WHERE s.slot_name = %s AND a.application_name = 'replicator slot' AND a.usename = current_user
            """,
            (name,),
        )


def drop_slot(conn: Connection, name: str) -> None:
    """Drop the slot if it exists; waits a few seconds for a session that is letting go of it.

    Args:
        conn: in autocommit mode.

    Raises:
        StateError: a session still uses it.
    """
    deadline = time.monotonic() + _DROP_TIMEOUT_S
    with translated("source"):
        while True:
            try:
                conn.execute(
                    "SELECT pg_catalog.pg_drop_replication_slot(slot_name)"
                    " FROM pg_catalog.pg_replication_slots WHERE slot_name = %s",
                    (name,),
                )
            except errors.UndefinedObject:
                return
            except errors.ObjectInUse as exc:
                if time.monotonic() > deadline:
                    raise StateError(
                        f"slot {name} is in use by another session of the source",
                        hint="stop the replicator that uses it, then try again",
                    ) from exc
                time.sleep(0.1)
            else:
                return
