"""``replicator.id_map`` from outside the service: import, export, look up, purge.

Every change raises ``checkpoint.map_version``, by which the running service notices it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from replicator.errors import Refused
from replicator.postgres.connection import Connection, query, translated
from replicator.target import state
from replicator.users.mapfile import MapFile, Mapping, read_map_file, write_map_file

RETENTION: Final = timedelta(days=90)  # for customer support
_SHOWN_CONFLICTS: Final = 20


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did to the map."""

    added: int
    changed: int
    unchanged: int

    def to_json(self) -> dict[str, int]:
        """For ``--json``."""
        return {"added": self.added, "changed": self.changed, "unchanged": self.unchanged}


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of ``replicator.id_map``."""

    map: str
    source_id: str
    target_id: str
    email: str | None
    created_at: datetime
    retain_until: datetime | None


def import_file(conn: Connection, path: Path, map_name: str = "users", *, replace: bool = False) -> ImportResult:
    """Add a map file's entries to a map, all or none. Creates our schema where it is not there yet.

    Args:
        conn: a session on the target, in autocommit mode.
        replace: let entries of the file change the target ID of entries in the map.

    Raises:
        Refused: the file is at fault, or an entry would change without ``replace``; the positions are named.
    """
    file = read_map_file(path)
    retain_until = file.retain_until or datetime.now(UTC) + RETENTION
    state.migrate(conn)
    with translated("target"), conn.transaction():
        known = _known_targets(conn, map_name, file.mappings)
        if not replace:
            _refuse_conflicts(path, file.mappings, known)
        result = _count(file.mappings, known)
        _upsert(conn, map_name, file.mappings, retain_until)
        if result.added or result.changed:
            _raise_map_version(conn)
    return result


def export_file(conn: Connection, path: Path, map_name: str = "users") -> int:
    """Write a map to a file; the number of its entries.

    Raises:
        Refused: the map is empty, or holds IDs that are no UUIDs, which the file has no place for.
    """
    entries = list(_entries(conn, map_name)) if _has_maps(conn) else []
    if not entries:
        raise Refused(f"the map {map_name} is empty", hint="`replicator users status` lists the maps")
    dates = [entry.retain_until for entry in entries if entry.retain_until is not None]
    try:
        mappings = tuple(
            Mapping(
                supabaseUserId=entry.source_id,  # type: ignore[arg-type]  # parsed by the model
                stackAuthUserId=entry.target_id,  # type: ignore[arg-type]
                email=entry.email,
                migratedAt=entry.created_at,
            )
            for entry in entries
        )
    except ValueError:
        raise Refused(f"the map {map_name} holds IDs that are no UUIDs", hint="a map file has users alone") from None
    write_map_file(
        path, MapFile(generatedAt=datetime.now(UTC), retainUntil=max(dates, default=None), mappings=mappings)
    )
    return len(mappings)


def lookup(conn: Connection, user_id: str) -> list[Entry]:
    """The entries of all maps in which ``user_id`` is the source or the target ID."""
    if not _has_maps(conn):
        return []
    with translated("target"):
        rows = query(
            conn,
            """
            SELECT map, source_id, target_id, email, created_at, retain_until FROM replicator.id_map
            WHERE source_id = lower(%s) OR target_id = lower(%s) ORDER BY map, source_id
            """,
            user_id,
            user_id,
        )
    return [Entry(*row) for row in rows]


def purge(conn: Connection, *, expired_only: bool = True) -> int:
    """Remove entries past their ``retain_until``, or all that have one; the number removed.

    Entries without such a date belong to lookups, which follow the stream: they stay.

    Raises:
        Refused: a stream still needs the map.
    """
    if not _has_maps(conn):
        return 0
    with translated("target"), conn.transaction():
        [(unfinished,)] = query(conn, "SELECT EXISTS (SELECT FROM replicator.checkpoint WHERE phase <> 'cut_over')")
        if unfinished:
            raise Refused(
                "the map is in use: the replication has not been cut over", hint="purge after `replicator cutover`"
            )
        cursor = conn.execute(
            "DELETE FROM replicator.id_map WHERE retain_until <= CASE WHEN %s THEN now() ELSE 'infinity' END",
            (expired_only,),
        )
        return cursor.rowcount


def _has_maps(conn: Connection) -> bool:
    with translated("target"):
        return state.exists(conn)


def _known_targets(conn: Connection, map_name: str, mappings: Iterable[Mapping]) -> dict[str, str]:
    # Locked until the end of the import: what was compared is what is replaced.
    rows = query(
        conn,
        "SELECT source_id, target_id FROM replicator.id_map WHERE map = %s AND source_id = ANY (%s) FOR UPDATE",
        map_name,
        [str(mapping.supabase_user_id) for mapping in mappings],
    )
    return dict(rows)


def _refuse_conflicts(path: Path, mappings: Iterable[Mapping], known: dict[str, str]) -> None:
    lines = [
        f"{path}: mappings[{at}] has another stackAuthUserId than the map"
        for at, mapping in enumerate(mappings)
        if known.get(str(mapping.supabase_user_id), str(mapping.stack_auth_user_id)) != str(mapping.stack_auth_user_id)
    ]
    if lines:
        if len(lines) > _SHOWN_CONFLICTS:
            lines[_SHOWN_CONFLICTS:] = [f"{path}: {len(lines) - _SHOWN_CONFLICTS:,} more conflicts"]
        raise Refused("\n".join(lines), hint="give --replace if the file is right")


def _count(mappings: Iterable[Mapping], known: dict[str, str]) -> ImportResult:
    targets = {str(mapping.supabase_user_id): str(mapping.stack_auth_user_id) for mapping in mappings}
    added = len(targets.keys() - known.keys())
    unchanged = len(targets.items() & known.items())
    return ImportResult(added, len(targets) - added - unchanged, unchanged)


def _upsert(conn: Connection, map_name: str, mappings: Iterable[Mapping], retain_until: datetime) -> None:
    # One entry per source ID: ON CONFLICT cannot touch a row twice.
    unique = {mapping.supabase_user_id: mapping for mapping in mappings}.values()
    conn.execute(
        """
        INSERT INTO replicator.id_map (map, source_id, target_id, email, created_at, retain_until)
        SELECT %s, s, t, e, coalesce(c, now()), %s
        FROM unnest(%s::text[], %s::text[], %s::text[], %s::timestamptz[]) AS entry (s, t, e, c)
        ON CONFLICT (map, source_id) DO UPDATE
        SET target_id = excluded.target_id, email = coalesce(excluded.email, id_map.email),
            retain_until = excluded.retain_until
        """,
        (
            map_name,
            retain_until,
            [str(mapping.supabase_user_id) for mapping in unique],
            [str(mapping.stack_auth_user_id) for mapping in unique],
            [mapping.email for mapping in unique],
            [mapping.migrated_at for mapping in unique],
        ),
    )


def _raise_map_version(conn: Connection) -> None:
    conn.execute("UPDATE replicator.checkpoint SET map_version = map_version + 1")


def _entries(conn: Connection, map_name: str) -> Iterable[Entry]:
    with translated("target"):
        rows = query(
            conn,
            """
            SELECT map, source_id, target_id, email, created_at, retain_until FROM replicator.id_map
            WHERE map = %s ORDER BY source_id
            """,
            map_name,
        )
    return [Entry(*row) for row in rows]
