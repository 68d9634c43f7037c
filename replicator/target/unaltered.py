"""Whether the tables that a batch went into are still those that it was made for.

Rows travel as records of the table's row type, by position. A column that is dropped and added again while the stream
runs, or two that change names, would take each other's values without an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from psycopg import errors

from replicator.model.schema import TableName
from replicator.routing.route import Route

_MARK: Final = "replicator.a_table_of_the_target_was_altered"

# In the transaction of the rows: what has touched a table keeps every ALTER TABLE off it until its end, and sees
# those from before. The mark is no relation, which is how a plain SELECT raises an error.
UNALTERED: Final = b"""
    SELECT (CASE WHEN EXISTS (
        SELECT FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[]) AS w (s, t, oid, version)
        LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.s
        LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.t
        WHERE c.oid::bigint IS DISTINCT FROM w.oid OR w.version <> (
            SELECT coalesce(sum(pg_catalog.hashtextextended(
                pg_catalog.concat(a.attname, ' ', a.atttypid, ' ', a.attisdropped), a.attnum) >> 16), 0)::bigint
            FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0)
    ) THEN %s::text END)::pg_catalog.regclass
"""


def parameters(routes: Iterable[Route], touched: Collection[TableName]) -> tuple[object, ...]:
    """Those of `UNALTERED`."""
    targets = [route.target for route in routes if route.name in touched]
    return (
        [table.name[0] for table in targets],
        [table.name[1] for table in targets],
        [table.oid for table in targets],
        [table.version for table in targets],
        _MARK,
    )


def is_alteration(exc: errors.Error) -> bool:
    """Whether `UNALTERED` has raised this."""
    return isinstance(exc, errors.UndefinedTable) and _MARK in (exc.diag.message_primary or "")
