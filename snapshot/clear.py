"""Empty target tables before rows arrive: never somebody else's without being told to, never by CASCADE."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from psycopg import sql

from replicator.errors import Refused
from replicator.model.schema import Table, TableName, show_tables
from replicator.postgres.catalog import list_references
from replicator.postgres.connection import Connection, query, table_identifier
from replicator.routing.order import levels
from replicator.target.role import may_be_replica

_TABLES_A_LOOK = 100  # a round trip for each would take longer than looking


def refuse_rows(conn: Connection, tables: Iterable[Table]) -> None:
    """Make sure that tables which we never wrote are empty.

    Raises:
        Refused: some hold rows.
    """
    occupied = tables_with_rows(conn, [table.name for table in tables])
    if occupied:
        raise Refused(
            f"target tables hold rows: {show_tables(occupied)}", hint="empty them yourself, or let --truncate do it"
        )


def refuse_outsiders(conn: Connection, tables: Iterable[Table], *, but: Collection[TableName] = ()) -> None:
    """Make sure that tables can be truncated without touching any other.

    Args:
        but: tables of other lanes.

    Raises:
        Refused: tables outside of them reference them.
    """
    outsiders = [name for name in _referencing(conn, tables) if name not in but]
    if outsiders:
        raise Refused(
            f"cannot truncate: {show_tables(outsiders)} outside the plan references tables of it",
            hint="replicate these tables too, or drop their foreign keys for the time being",
        )


def tables_with_rows(conn: Connection, names: Sequence[TableName]) -> list[TableName]:
    """Those of the tables that hold any row; an error if a policy would hide some."""
    found = []
    with conn.transaction():
        conn.execute("SET LOCAL row_security = off")
        for at in range(0, len(names), _TABLES_A_LOOK):
            some = names[at : at + _TABLES_A_LOOK]
            looks = sql.SQL(", ").join(sql.SQL("EXISTS (SELECT FROM {})").format(table_identifier(n)) for n in some)
            [answers] = query(conn, sql.SQL("SELECT {}").format(looks))
            found += [name for name, holds in zip(some, answers, strict=True) if holds]
    return found


def truncate(conn: Connection, tables: Collection[Table], *, but: Collection[TableName] = ()) -> None:
    """Empty tables, whoever's their rows are. In one statement: those that reference each other only go together.

    Args:
        but: tables of other lanes. PostgreSQL truncates no table without those that reference it, which are not ours
            to empty: then row by row.
    """
    if any(name in but for name in _referencing(conn, tables)):
        with conn.transaction():
            empty(conn, tables, replica=may_be_replica(conn))
    elif tables:
        names = sql.SQL(", ").join(table_identifier(table.name) for table in tables)
        conn.execute(sql.SQL("TRUNCATE {}").format(names))


def empty(conn: Connection, tables: Collection[Table], *, replica: bool) -> None:
    """Empty tables whose rows are our own.

    Args:
        conn: inside a transaction.
        replica: this role may turn off triggers and foreign keys.

    Raises:
        Refused: rows of other tables reference them, and live constraints would carry the deletion there.
    """
    if replica:
        conn.execute("SET LOCAL session_replication_role = replica")
    outsiders = _referencing(conn, tables)
    if not outsiders and _may_truncate(conn, tables):
        truncate(conn, tables)
        return
    holding = [] if replica else tables_with_rows(conn, outsiders)
    if holding:
        raise Refused(
            f"cannot empty {show_tables(table.name for table in tables)}: rows of {show_tables(holding)} reference "
            "them, and the target's role may not turn foreign keys off",
            hint="GRANT SET ON PARAMETER session_replication_role to the role (server 15+), or copy those tables too",
        )
    for level in reversed(levels(tables)):
        for name in level:
            conn.execute(sql.SQL("DELETE FROM {}").format(table_identifier(name)))


def _may_truncate(conn: Connection, tables: Iterable[Table]) -> bool:
    [(may,)] = query(
        conn,
        "SELECT coalesce(bool_and(pg_catalog.has_table_privilege(t, 'TRUNCATE')), true) FROM unnest(%s::oid[]) AS t",
        [table.oid for table in tables],
    )
    return bool(may)


def _referencing(conn: Connection, tables: Iterable[Table]) -> list[TableName]:
    """Tables outside ``tables`` with a foreign key to one of them."""
    return sorted({name for _, name in list_references(conn, tables)})
