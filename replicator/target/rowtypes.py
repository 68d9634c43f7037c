"""The type in which rows of a table travel to the target: its own row type, or one that also takes partial rows.

A key, or a row with untouched values, is a whole row in which the other fields are NULL. A domain may refuse NULL even
there. For tables that have one we make a composite type of our own, with the domains' base types, in the session's
temporary schema: it lives as long as the session that applies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from psycopg import errors, sql

from replicator.logs import get_logger
from replicator.model.schema import Table, TableName, Type
from replicator.postgres.connection import Connection, query, table_identifier

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RowType:
    """``oids``: types of the fields, one per column of the table."""

    name: sql.Composable
    oid: int
    oids: tuple[int, ...]


def own_row_type(table: Table) -> RowType:
    """The row type that the table itself has."""
    return RowType(table_identifier(table.name), table.type_oid, tuple(column.type.oid for column in table.columns))


def make_row_types(conn: Connection, tables: Iterable[Table]) -> Mapping[TableName, RowType]:
    """Row types without domains, for the tables that have any, in this session. None where the role may not make them.

    ``conn`` is in autocommit mode and outside of a transaction.
    """
    wanted = [table for table in tables if any(column.type.kind == "d" for column in table.columns)]
    try:
        return {table.name: _make(conn, table) for table in wanted}
    except errors.InsufficientPrivilege:
        log.warning(
            "without the privilege TEMPORARY on the database, changes to rows of tables with a domain that forbids"
            " NULL will fail"
        )
        return {}


def _make(conn: Connection, table: Table) -> RowType:
    bases = [_base(column.type) for column in table.columns]
    # With typmod -1 it names the bare type; `Type.name` says "character", which as a declaration means one of them.
    bare = dict(query(conn, "SELECT t::bigint, pg_catalog.format_type(t, -1) FROM unnest(%s::oid[]) AS t",
                      sorted({base.oid for base in bases})))  # fmt: skip
    attributes = [
        sql.SQL("{} {}").format(
            sql.Identifier(column.name),
            sql.SQL(bare[base.oid] if column.type.kind == "d" else column.type_sql),
        )
        for column, base in zip(table.columns, bases, strict=True)
    ]
    name = sql.Identifier("pg_temp", f"row_of_{table.oid}")
    conn.execute(sql.SQL("DROP TYPE IF EXISTS {}").format(name))
    conn.execute(sql.SQL("CREATE TYPE {} AS ({})").format(name, sql.SQL(", ").join(attributes)))
    [(oid,)] = query(
        conn,
        "SELECT oid::bigint FROM pg_catalog.pg_type"
        " WHERE typname = %s AND typnamespace = pg_catalog.pg_my_temp_schema()",
        f"row_of_{table.oid}",
    )
    return RowType(name, oid, tuple(base.oid for base in bases))


def _base(type_: Type) -> Type:
    """The type under all domains."""
    while type_.base is not None:
        type_ = type_.base
    return type_
