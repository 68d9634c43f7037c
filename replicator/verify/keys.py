"""Keys: in which order both servers can send rows, how that order reads in Python, and how rows are found again.

Text is ordered by its bytes (COLLATE "C"), since collations differ between servers. A type whose binary form has no
simple order is ordered by its text, sent along as one more column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from replicator.model.row import NULL, Field
from replicator.model.schema import Type
from replicator.routing.route import Route, RouteColumn
from replicator.routing.wire import FIRST_USER_OID
from replicator.verify.projection import base_type, column_sql, source_sql

Key = tuple[Field, ...]  # of a row in the target's form
Rank = Callable[[Field], Any]

_TEXT_OID, _TEXT_ARRAY_OID = 25, 1009
_BY_BYTES = frozenset({"uuid", "oid", "boolean", "bytea"})
_BY_NUMBER = frozenset(
    {
        "smallint",
        "integer",
        "bigint",
        "date",
        "time without time zone",
        "timestamp without time zone",
        "timestamp with time zone",
    }
)
_STRINGS = frozenset({"text", "character varying", "name"})


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """One column of a key: ``position`` in the rows that we select, the order, and the test for equality.

    ``source_match`` and ``target_match`` are compared with elements of an array parameter of ``array_oid``.
    """

    position: int
    rank: Rank
    source_order: sql.Composable
    target_order: sql.Composable
    source_match: sql.Composable
    target_match: sql.Composable
    element_oid: int
    array_oid: int
    element_type: str = ""  # the elements are cast to it; its name as the catalog writes it
    by_text: bool = False  # ordered by COLLATE "C"
    mapped: bool = False  # passes through an ID map


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """The key of a route; no ``columns`` where only the whole row tells one from another.

    ``source_extras`` and ``target_extras``: columns to select behind those of the route.
    """

    columns: tuple[KeyColumn, ...] = ()
    source_extras: tuple[sql.Composable, ...] = ()
    target_extras: tuple[sql.Composable, ...] = ()

    @property
    def mapped(self) -> bool:
        """Whether the two sides order their rows differently, since IDs change on the way."""
        return any(column.mapped for column in self.columns)

    @property
    def by_text(self) -> bool:
        """Whether any column is ordered by its text."""
        return any(column.by_text for column in self.columns)


def plan_key(route: Route) -> KeyPlan:
    """The key by which rows of both sides are matched: the source's, in the target's columns."""
    positions = {column.source.name: at for at, column in enumerate(route.columns)}
    names = route.source.key or route.source.primary_key
    if not names or any(name not in positions for name in names):
        return KeyPlan()
    columns: list[KeyColumn] = []
    source_extras: list[sql.Composable] = []
    target_extras: list[sql.Composable] = []
    for name in names:
        at = positions[name]
        pair = route.columns[at]
        source, target = source_sql(pair), column_sql(pair.target)
        made = _key_column(at, source, target, pair)
        if made is None:
            made = _by_own_text(len(route.columns) + len(source_extras), source, target, base_type(pair.target.type))
            source_extras.append(_text(source))
            target_extras.append(_text(target))
        columns.append(made)
    return KeyPlan(tuple(columns), tuple(source_extras), tuple(target_extras))


def _key_column(at: int, source: sql.Composable, target: sql.Composable, pair: RouteColumn) -> KeyColumn | None:
    """A column whose binary form can be ordered; None if it cannot."""
    type_, mapped = base_type(pair.target.type), pair.id_map is not None
    if type_.name in _BY_BYTES or type_.name in _BY_NUMBER:
        rank = _bytes_rank if type_.name in _BY_BYTES else _number_rank
        return KeyColumn(at, rank, source, target, source, target, type_.oid, type_.array_oid, mapped=mapped)
    orders = _in_c(source), _in_c(target)
    if type_.name == "character":
        return KeyColumn(at, _padded_rank, *orders, source, target, type_.oid, type_.array_oid, by_text=True)
    if type_.name in _STRINGS or type_.kind == "e" or type_.name.endswith("citext"):
        # As text: the other server may not know a label, and operators of extensions are out of the search_path.
        match = source if base_type(pair.source.type).name in _STRINGS else _text(source)
        target_match = target if type_.name in _STRINGS else _text(target)
        return KeyColumn(
            at, _bytes_rank, *orders, match, target_match, _TEXT_OID, _TEXT_ARRAY_OID, by_text=True, mapped=mapped
        )
    return None


def _by_own_text(at: int, source: sql.Composable, target: sql.Composable, type_: Type) -> KeyColumn:
    builtin = type_.oid < FIRST_USER_OID
    return KeyColumn(
        at,
        _bytes_rank,
        _in_c(source),
        _in_c(target),
        source if builtin else _text(source),
        target if builtin else _text(target),
        _TEXT_OID,
        _TEXT_ARRAY_OID,
        element_type=type_.name if builtin else "",
        by_text=True,
    )


def _text(value: sql.Composable) -> sql.Composable:
    return sql.SQL("({})::text").format(value)


def _in_c(value: sql.Composable) -> sql.Composable:
    return sql.SQL('({})::text COLLATE "C"').format(value)


# Ranks order as the servers do: NULLs last.


def _bytes_rank(value: Field) -> Any:
    return (1, b"") if value == NULL else (0, value[4:])


def _padded_rank(value: Field) -> Any:
    return (1, b"") if value == NULL else (0, value[4:].rstrip(b" "))


def _number_rank(value: Field) -> Any:
    return (1, 0) if value == NULL else (0, int.from_bytes(value[4:], "big", signed=True))
