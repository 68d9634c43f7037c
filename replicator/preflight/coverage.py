"""Columns that hold user IDs and pass through no map: found by looking at samples of their values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from psycopg import sql

from replicator.config import Settings
from replicator.model.schema import Column, Table
from replicator.postgres.connection import Connection, Statement, query, table_identifier
from replicator.preflight.check import Check, or_passed, warned
from replicator.routing.route import Route
from replicator.target import state

_SAMPLE_ROWS = 500
_SCAN_ROWS = 100_000  # up to this size a table is read until enough values are found, above it is sampled
_TEXT_CHARACTERS = 10_000
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_ID_TYPES = frozenset({"uuid"})
_TEXT_TYPES = frozenset({"text", "character varying", "character"})
_DOCUMENT_TYPES = frozenset({"json", "jsonb"})


def check_id_coverage(
    source: Connection, target: Connection, settings: Settings, routes: Sequence[Route]
) -> list[Check]:
    """Warn of every column whose sampled values are user IDs while no map covers it. Values are never shown."""
    maps = [spec.name for spec in settings.map_specs if not spec.is_lookup]
    if not maps:
        return []
    known = _KnownUsers(source, target, maps)
    found = [check for route in routes for check in _uncovered(source, known, route)]
    return or_passed(found, "id_coverage", "both", f"no column outside the maps holds {known.of_whom} in a sample")


class _KnownUsers:
    """Tells which IDs are users': those of the maps, or of ``auth.users`` while the maps are empty."""

    def __init__(self, source: Connection, target: Connection, maps: list[str]) -> None:
        self._maps = maps
        self._conn: Connection | None = None
        self.of_whom = "IDs of users"
        self._statement: Statement = ""
        filled = state.exists(target) and query(
            target, "SELECT EXISTS (SELECT FROM replicator.id_map WHERE map = ANY (%s))", maps
        ) == [(True,)]
        if filled:
            self._conn, self.of_whom = target, "IDs of the map"
            self._statement = "SELECT source_id FROM replicator.id_map WHERE map = ANY (%s) AND source_id = ANY (%s)"
        elif query(source, "SELECT pg_catalog.to_regclass('auth.users') IS NOT NULL") == [(True,)]:
            self._conn, self.of_whom = source, "IDs of auth.users"
            self._statement = "SELECT id::text FROM auth.users WHERE %s::text[] <> '{}' AND id::text = ANY (%s)"

    def among(self, ids: set[str]) -> set[str]:
        if self._conn is None or not ids:
            return set()
        return {found for (found,) in query(self._conn, self._statement, self._maps, sorted(ids))}


def _uncovered(source: Connection, known: _KnownUsers, route: Route) -> Iterator[Check]:
    for column in route.columns:
        if column.id_map is not None:
            continue
        kind = (column.source.type.base or column.source.type).name
        if kind not in _ID_TYPES | _TEXT_TYPES | _DOCUMENT_TYPES:
            continue
        values = _sample(source, route.source, column.source)
        whole = {value.lower() for value in values if _UUID.fullmatch(value)}
        if hits := known.among(whole):
            yield warned(
                "id_coverage",
                "both",
                f"{route}.{column.target.name} holds {known.of_whom} ({len(hits)} of {len(values)} sampled values),"
                " and no map covers it",
                "add it to the columns of an [id_maps] entry, or accept that it keeps the source's IDs",
                route.name,
            )
        elif kind not in _ID_TYPES and known.among({at.lower() for value in values for at in _UUID.findall(value)}):
            yield warned(
                "id_coverage",
                "both",
                f"{route}.{column.target.name} holds {known.of_whom} inside its {kind}, where no map reaches",
                "check what reads them on the target",
                route.name,
            )


def _sample(conn: Connection, table: Table, column: Column) -> list[str]:
    """Distinct values of one column as text, at most `_SAMPLE_ROWS`, without reading a large table as a whole."""
    sample: sql.Composable = sql.SQL("")
    if table.rows_estimate > _SCAN_ROWS:
        percent = 100 * _SCAN_ROWS / table.rows_estimate
        sample = sql.SQL("TABLESAMPLE SYSTEM ({})").format(sql.Literal(percent))
    name = sql.Identifier(column.name)
    statement = sql.SQL(
        "SELECT DISTINCT v FROM (SELECT pg_catalog.left({name}::text, {length}) AS v FROM {table} {sample}"
        " WHERE {name} IS NOT NULL LIMIT {limit}) AS s"
    ).format(
        name=name,
        length=sql.Literal(_TEXT_CHARACTERS),
        table=table_identifier(table.name),
        sample=sample,
        limit=sql.Literal(_SAMPLE_ROWS),
    )
    return [value for (value,) in query(conn, statement)]
