"""The SQL expression that gives a source column the form in which the target holds it.

The target's receive functions apply its typmod: times are rounded, numbers rescaled, blanks cut or added. A cast does
the same, except that it cuts text silently and fails on a number too large: such a value stays as it is, and differs.
"""

from __future__ import annotations

from typing import LiteralString, cast

from psycopg import sql

from replicator.model.schema import Column, Type
from replicator.routing.route import RouteColumn
from replicator.routing.wire import INTEGERS

ROW = sql.Identifier("r")  # the alias of the table in every statement of ours

_ROUNDED = frozenset(
    {
        "timestamp without time zone",
        "timestamp with time zone",
        "time without time zone",
        "time with time zone",
        "interval",
    }
)
_VARHDRSZ = 4  # typmods of numeric and of character types count the header of a varlena


def base_type(type_: Type) -> Type:
    """The type under all domains."""
    while type_.kind == "d" and type_.base is not None:
        type_ = type_.base
    return type_


def column_sql(column: Column) -> sql.Composable:
    """The column of the row at hand."""
    return sql.Identifier("r", column.name)


def type_sql(name: str) -> sql.Composable:
    """A type's name out of the catalog: ``format_type`` has quoted it."""
    return sql.SQL(cast(LiteralString, name))  # type: ignore[redundant-cast]


def source_sql(column: RouteColumn) -> sql.Composable:
    """What the source column becomes on the target, in the target's type or one of the same wire form."""
    value = column_sql(column.source)
    source, target = base_type(column.source.type), base_type(column.target.type)
    if source.name == "character" and target.name in ("text", "character varying") and column.source.typmod > 0:
        # The wire carries the padding; a cast to text would strip it.
        value = sql.SQL("pg_catalog.rpad({}::text, {})").format(value, column.source.typmod - _VARHDRSZ)
    if (target.element or target).name in INTEGERS and source.name != target.name:
        return sql.SQL("{}::{}").format(value, type_sql(target.name))
    if column.target.typmod < 0 or (source.name == target.name and column.source.typmod == column.target.typmod):
        return value
    if (target.element or target).name in _ROUNDED:
        return sql.SQL("{}::{}").format(value, type_sql(column.target.type_sql))
    match target.name:
        case "numeric":
            return _fitting_number(value, column.target)
        case "character varying" | "character":
            return _fitting_text(value, column.target, target)
        case "numeric[]":
            return sql.SQL("{}::{}").format(value, type_sql(column.target.type_sql))
        case _:
            return value


def _fitting_number(value: sql.Composable, target: Column) -> sql.Composable:
    modifier = target.typmod - _VARHDRSZ
    precision, scale = modifier >> 16 & 0xFFFF, ((modifier & 0x7FF) ^ 0x400) - 0x400
    return sql.SQL(
        "CASE WHEN pg_catalog.abs(pg_catalog.round({value}, {scale})) < {limit}::numeric "
        "THEN {value}::{type} ELSE {value} END"
    ).format(
        value=value,
        scale=sql.Literal(scale),
        limit=sql.Literal(f"1e{precision - scale}"),
        type=type_sql(target.type_sql),
    )


def _fitting_text(value: sql.Composable, target: Column, base: Type) -> sql.Composable:
    return sql.SQL(
        "CASE WHEN pg_catalog.length(pg_catalog.rtrim({value}::text, ' ')) <= {limit} "
        "THEN {value}::{type} ELSE {value}::{open} END"
    ).format(
        value=value,
        limit=sql.Literal(target.typmod - _VARHDRSZ),
        type=type_sql(target.type_sql),
        open=sql.SQL("varchar" if base.name == "character varying" else "bpchar"),
    )
