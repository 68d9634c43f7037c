"""Rows written before a map was complete, or after it lost an entry, catch up with it.

Driven by ``replicator.unmapped_id``, so a crash anywhere repeats what was not committed.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol, get_args

from psycopg import sql

from replicator.model.row import Row, split
from replicator.model.schema import TableName
from replicator.postgres.connection import Connection, query, table_identifier
from replicator.postgres.copy import copy_out
from replicator.postgres.placeholders import with_placeholders
from replicator.routing.idmap import IdMaps, MapSpec, OnUnmapped
from replicator.routing.mapper import Mapper
from replicator.routing.route import Route
from replicator.target.rowtypes import RowType
from replicator.target.statements import TableStatements

MappableType = Literal["uuid", "text", "character varying", "bigint", "integer"]
_TYPES: dict[str, MappableType] = {name: name for name in get_args(MappableType)}

# Opens a session on the source when one is needed: only columns that were set to NULL have forgotten their ID.
OpenSource = Callable[[], Connection]


class HeldRows(Protocol):
    """Rows that are not on the target yet, and catch up like those that are."""

    def replace_ids(self, table: TableName, column: str, ids: Mapping[str, str]) -> None:
        """Source IDs that stand in a column become target IDs."""

    def fill_nulls(self, route: Route, column: str, rows: Sequence[Row]) -> None:
        """NULLs of a column are taken from rows of the same key."""


def mapped_columns(routes: Iterable[Route], map_name: str) -> list[tuple[Route, str, MapSpec]]:
    """Every target column that passes through this map."""
    return [
        (route, column.target.name, column.id_map)
        for route in routes
        for column in route.columns
        if column.id_map is not None and column.id_map.name == map_name
    ]


def unmap(conn: Connection, routes: Sequence[Route], map_name: str, source_id: str, target_id: str) -> None:
    """A lookup lost ``source_id`` → ``target_id``: columns that hold ``target_id`` are mapped again without it."""
    for route, column, spec in mapped_columns(routes, map_name):
        cast = _type_of(route, column)
        kept = spec.on_unmapped is OnUnmapped.KEEP
        statement = sql.SQL("UPDATE {} SET {} = {} WHERE {} = {}").format(
            table_identifier(route.target.name),
            sql.Identifier(column),
            _typed(cast) if kept else sql.SQL("NULL"),
            sql.Identifier(column),
            _typed(cast),
        )
        cursor = conn.execute(with_placeholders(statement), (source_id, target_id) if kept else (target_id,))
        if cursor.rowcount:
            conn.execute(
                """
                INSERT INTO replicator.unmapped_id (map, table_schema, table_name, column_name, source_id)
                VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
                """,
                (map_name, *route.target.name, column, source_id),
            )


def remap(
    conn: Connection,
    routes: Sequence[Route],
    maps: IdMaps,
    open_source: OpenSource,
    held: HeldRows,
    row_types: Mapping[TableName, RowType],
) -> int:
    """Map again what was recorded as unmapped and has a target ID now; the number of rows that changed."""
    known = query(
        conn,
        """
        SELECT u.map, u.table_schema, u.table_name, u.column_name, u.source_id, m.target_id
        FROM replicator.unmapped_id u JOIN replicator.id_map m USING (map, source_id)
        """,
    )
    todo: dict[tuple[str, TableName, str], dict[str, str]] = defaultdict(dict)
    for map_name, schema, table, column, source_id, target_id in known:
        todo[map_name, (schema, table), column][source_id] = target_id
    by_name = {route.name: route for route in routes}
    changed = 0
    for (map_name, table, column), ids in todo.items():
        route = by_name.get(table)
        if route is None:
            continue
        spec = next((spec for spec in route.maps if spec.name == map_name), None)
        if spec is None:
            continue
        if spec.on_unmapped is OnUnmapped.NULL:
            if not route.key:
                continue  # nothing tells which of its NULLs was which ID
            statements = TableStatements(route, row_types.get(route.name))
            changed += _fill_nulls(conn, statements, column, ids, maps, open_source, held)
        else:
            changed += _replace(conn, route, column, ids)
            held.replace_ids(table, column, ids)
        conn.execute(
            """
            DELETE FROM replicator.unmapped_id WHERE map = %s AND table_schema = %s AND table_name = %s
              AND column_name = %s AND source_id = ANY (%s)
            """,
            (map_name, *table, column, list(ids)),
        )
    return changed


def _replace(conn: Connection, route: Route, column: str, ids: dict[str, str]) -> int:
    """Kept source IDs stand in the column themselves."""
    cast = sql.SQL(_type_of(route, column))
    statement = sql.SQL(
        "UPDATE {table} AS t SET {column} = e.new::{cast} FROM unnest(%s::text[], %s::text[]) AS e (old, new)"
        " WHERE t.{column} = e.old::{cast}"
    ).format(table=table_identifier(route.target.name), column=sql.Identifier(column), cast=cast)
    return conn.execute(with_placeholders(statement), (list(ids.keys()), list(ids.values()))).rowcount


def _fill_nulls(
    conn: Connection,
    statements: TableStatements,
    column: str,
    ids: dict[str, str],
    maps: IdMaps,
    open_source: OpenSource,
    held: HeldRows,
) -> int:
    """IDs that became NULL are read from the source again, by key.

    The source may be ahead of the stream: a row that is not here yet is not hit, and one that changed since
    gets its column from the change that is still to come.
    """
    route = statements.route
    at = route.target_columns.index(column)
    mapper = Mapper(route, route.source_columns, maps)
    statement = statements.update((at,))
    if statement is None:
        return 0
    changed = 0
    found = map(mapper.row, _source_rows(open_source(), route, route.columns[at].source.name, list(ids)))
    while rows := list(itertools.islice(found, 1000)):
        changed += conn.execute(statement, (statements.rows(rows),)).rowcount
        held.fill_nulls(route, column, rows)
    return changed


def _source_rows(source: Connection, route: Route, column: str, ids: list[str]) -> Iterable[Row]:
    statement = sql.SQL("COPY (SELECT {} FROM {} WHERE {}::text IN ({})) TO STDOUT (FORMAT binary)").format(
        sql.SQL(", ").join(map(sql.Identifier, route.source_columns)),
        table_identifier(route.source.name),
        sql.Identifier(column),
        sql.SQL(", ").join(map(sql.Literal, ids)),
    )
    for data in copy_out(source, statement):
        yield split(data)


def _type_of(route: Route, column: str) -> MappableType:
    """The column's type as SQL; `plan_routes` lets none but these through."""
    return _TYPES[route.target.by_name[column].type.name]


def _typed(cast: MappableType) -> sql.SQL:
    return sql.SQL("%s::" + cast)
