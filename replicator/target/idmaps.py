"""``replicator.id_map`` and ``replicator.unmapped_id``: who is who, and who is not known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from replicator.postgres.connection import Connection, query
from replicator.routing.idmap import IdMaps, Unmapped


def load_maps(conn: Connection, names: Iterable[str]) -> IdMaps:
    """The maps of these names, tables and lookups alike."""
    entries: dict[str, dict[str, str]] = {name: {} for name in names}
    rows = query(conn, "SELECT map, source_id, target_id FROM replicator.id_map WHERE map = ANY (%s)", list(entries))
    for name, source_id, target_id in rows:
        entries[name][source_id] = target_id
    return IdMaps(entries)


def replace_entries(conn: Connection, name: str, entries: Mapping[str, str]) -> None:
    """Let a lookup hold these entries (source ID → target ID) and no others.

    Args:
        conn: inside a transaction.
    """
    conn.execute("DELETE FROM replicator.id_map WHERE map = %s", (name,))
    store_entries(conn, name, entries)


def names(conn: Connection) -> set[str]:
    """The maps that have any entry."""
    return {name for (name,) in query(conn, "SELECT DISTINCT map FROM replicator.id_map")}


def store_entries(conn: Connection, name: str, entries: Mapping[str, str]) -> None:
    """Insert or replace entries (source ID → target ID) of a lookup."""
    conn.execute(
        """
        INSERT INTO replicator.id_map (map, source_id, target_id)
        SELECT %s, s, t FROM unnest(%s::text[], %s::text[]) AS e (s, t)
        ON CONFLICT (map, source_id) DO UPDATE SET target_id = excluded.target_id
        """,
        (name, list(entries.keys()), list(entries.values())),
    )


def remove_entries(conn: Connection, name: str, source_ids: Iterable[str]) -> None:
    """Remove entries of a lookup."""
    conn.execute("DELETE FROM replicator.id_map WHERE map = %s AND source_id = ANY (%s)", (name, list(source_ids)))


def record_unmapped(conn: Connection, unmapped: Iterable[Unmapped]) -> int:
    """Record IDs that no map knew; the number of distinct source IDs per map that are new."""
    rows = sorted(unmapped)
    found = query(
        conn,
        """
        INSERT INTO replicator.unmapped_id (map, table_schema, table_name, column_name, source_id)
        SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
        ON CONFLICT DO NOTHING RETURNING map, source_id
        """,
        [row.map for row in rows],
        [row.table[0] for row in rows],
        [row.table[1] for row in rows],
        [row.column for row in rows],
        [row.source_id for row in rows],
    )
    return len(set(found))


def count_unmapped(conn: Connection) -> int:
    """Distinct source IDs that were met and still have no target ID."""
    [(count,)] = query(
        conn,
        """
        SELECT count(DISTINCT (u.map, u.source_id)) FROM replicator.unmapped_id u
        WHERE NOT EXISTS (SELECT FROM replicator.id_map m WHERE m.map = u.map AND m.source_id = u.source_id)
        """,
    )
    return int(count)
