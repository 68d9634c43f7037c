"""How far the ID maps go: entries, IDs that no map knew, retention, users of the source that are covered."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from psycopg import errors

from replicator.model.schema import show_table
from replicator.postgres.connection import Connection, query, translated
from replicator.target import state


@dataclass(frozen=True, slots=True)
class UnmappedColumn:
    """Distinct IDs met in one target column that have no entry."""

    table: str
    column: str
    ids: int


@dataclass(frozen=True, slots=True)
class MapStatus:
    """One map. ``source_users`` and ``covered``: users in ``auth.users``, and those of them in the map.

    Both are None for a lookup (nothing to retain: it is derived) and where ``auth.users`` cannot be read.
    """

    name: str
    entries: int
    unmapped_ids: int
    columns: tuple[UnmappedColumn, ...]
    retain_until: datetime | None  # of the entry that expires last
    first_expiry: datetime | None
    expired: int
    source_users: int | None = None
    covered: int | None = None

    def to_json(self) -> dict[str, object]:
        """The entry of ``maps`` in ``users status --json``."""
        return {
            "name": self.name,
            "entries": self.entries,
            "unmapped_ids": self.unmapped_ids,
            "columns": [{"table": c.table, "column": c.column, "unmapped_ids": c.ids} for c in self.columns],
            "retain_until": _iso(self.retain_until),
            "first_expiry": _iso(self.first_expiry),
            "expired": self.expired,
            "source_users": self.source_users,
            "covered": self.covered,
        }


@dataclass(frozen=True, slots=True)
class UsersStatus:
    """All maps that have entries, unmapped IDs or a name in the settings."""

    maps: tuple[MapStatus, ...]

    @property
    def unmapped_ids(self) -> int:
        """Distinct IDs without a target ID, over all maps."""
        return sum(each.unmapped_ids for each in self.maps)

    def to_json(self) -> dict[str, object]:
        """The document of ``users status --json``."""
        return {"unmapped_ids": self.unmapped_ids, "maps": [each.to_json() for each in self.maps]}


def load_status(
    conn: Connection, source: Connection | None = None, *, tables: Collection[str] = ("users",)
) -> UsersStatus:
    """The status of all maps.

    Args:
        conn: a session on the target.
        source: a session on the source, for coverage; None: leave it out.
        tables: names of maps of kind table; listed and covered even while they are empty.
    """
    entries: dict[str, tuple[int, datetime | None, datetime | None, int]] = {}
    unmapped: dict[str, int] = {}
    columns: dict[str, list[UnmappedColumn]] = {}
    with translated("target"):
        if state.exists(conn):
            entries = _load_entries(conn)
            unmapped, columns = _load_unmapped(conn)
    users = _load_users(source) if source is not None else None
    found = []
    for name in sorted({*tables, *entries, *unmapped}):
        count, first, last, expired = entries.get(name, (0, None, None, 0))
        is_table = name in tables or last is not None
        covered = _count_covered(conn, name, users) if is_table and users is not None else None
        found.append(
            MapStatus(
                name, count, unmapped.get(name, 0), tuple(columns.get(name, ())), last, first, expired,
                len(users) if covered is not None and users is not None else None, covered,
            )
        )  # fmt: skip
    return UsersStatus(tuple(found))


def _load_entries(conn: Connection) -> dict[str, tuple[int, datetime | None, datetime | None, int]]:
    rows = query(
        conn,
        """
        SELECT map, count(*), min(retain_until), max(retain_until), count(*) FILTER (WHERE retain_until <= now())
        FROM replicator.id_map GROUP BY map
        """,
    )
    return {name: (count, first, last, expired) for name, count, first, last, expired in rows}


def _load_unmapped(conn: Connection) -> tuple[dict[str, int], dict[str, list[UnmappedColumn]]]:
    rows = query(
        conn,
        """
        SELECT u.map, u.table_schema, u.table_name, u.column_name, count(DISTINCT u.source_id)
        FROM replicator.unmapped_id u
        WHERE NOT EXISTS (SELECT FROM replicator.id_map m WHERE m.map = u.map AND m.source_id = u.source_id)
        GROUP BY GROUPING SETS ((u.map), (u.map, u.table_schema, u.table_name, u.column_name))
        ORDER BY 1, 2, 3, 4
        """,
    )
    totals = {name: count for name, schema, _, _, count in rows if schema is None}
    columns: dict[str, list[UnmappedColumn]] = {name: [] for name in totals}
    for name, schema, table, column, count in rows:
        if schema is not None:
            columns[name].append(UnmappedColumn(show_table((schema, table)), column, count))
    return totals, columns


def _load_users(source: Connection) -> list[str] | None:
    """The IDs of ``auth.users``; None where it is not there or may not be read."""
    try:
        return [user for (user,) in query(source, "SELECT id::text FROM auth.users")]
    except (errors.UndefinedTable, errors.InvalidSchemaName, errors.InsufficientPrivilege):
        return None


def _count_covered(conn: Connection, name: str, users: list[str]) -> int | None:
    with translated("target"):
        if not state.exists(conn):
            return 0
        [(covered,)] = query(
            conn,
            "SELECT count(*) FROM replicator.id_map WHERE map = %s AND source_id = ANY (%s)",
            name,
            users,
        )
    return int(covered)


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time is not None else None
