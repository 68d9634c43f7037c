"""The SQL that applies changes to one table, and the encoding of rows for it.

Rows travel as one binary array of the target table's row type (see `rowtypes`): `unnest` turns it back into rows, so
every statement works for one row or for thousands, needs no temporary table, and keeps one generic plan, which for a
function of unknown size is always a nested loop over the key's index.

Source: PostgreSQL, array_recv, record_recv (binary forms).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property

from psycopg import sql
from psycopg.adapt import Dumper
from psycopg.pq import Format

from replicator.errors import RowRejected
from replicator.model.row import NULL, UNCHANGED, Row
from replicator.postgres.connection import Connection, table_identifier
from replicator.postgres.placeholders import with_placeholders
from replicator.routing.route import Route
from replicator.target.rowtypes import RowType, own_row_type


class RowArray(bytes):
    """Rows as a binary array of a table's row type, ready to be a parameter."""

    __slots__ = ()


class _RowArrayDumper(Dumper):
    """Passes the bytes as they are; the statement's cast says of which type they are."""

    format = Format.BINARY

    def dump(self, obj: RowArray) -> bytes:
        return obj


def register(conn: Connection) -> None:
    """Let ``conn`` take `RowArray` parameters (placeholder ``%b``)."""
    conn.adapters.register_dumper(RowArray, _RowArrayDumper)


class TableStatements:
    """What the applier can do to one table. Rows are in the order of ``route.columns``."""

    def __init__(self, route: Route, row_type: RowType | None = None) -> None:
        """``route`` is sound and read from today's catalog: the row type's columns are encoded by OID.

        ``row_type``: one that was made for this session, where the table's own would not do.
        """
        self.route = route
        self._row_type = row_type or own_row_type(route.target)
        self.table = table_identifier(route.target.name)
        self.columns = [column.target.name for column in route.columns]
        self.key = [self.columns[at] for at in route.key]
        self._rows = self._row_type.name + sql.SQL("[]")
        self._list = _comma(sql.Identifier(name) for name in self.columns)
        self._encode_row = _record_encoder(route, self._row_type, range(len(self.columns)))
        self._encode_key = _record_encoder(route, self._row_type, route.key)
        self.copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(self.table, self._list)
        # Bytes, built once: composing a statement costs more than encoding its row.
        self.insert = with_placeholders(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM unnest(%b::{}) AS s").format(
                self.table, self._list, _comma(sql.Identifier("s", name) for name in self.columns), self._rows
            )
        )
        self.update = cache(self._update)
        self.update_key = cache(self._update_key)
        self.update_whole = cache(self._update_whole)
        # GENERATED ALWAYS AS IDENTITY refuses every UPDATE but SET DEFAULT, which draws a value of its own.
        self._fixed = {column.target.name for column in route.columns if column.target.identity == "a"}

    @cached_property
    def delete(self) -> bytes:
        """Delete the rows of these keys."""
        return with_placeholders(
            sql.SQL("DELETE FROM {} AS t USING unnest(%b::{}) AS s WHERE {}").format(
                self.table, self._rows, self._same_key()
            )
        )

    @cached_property
    def empty(self) -> bytes:
        """Delete all rows, where TRUNCATE is not allowed."""
        only = sql.SQL("DELETE FROM {}" if self.route.target.kind == "p" else "DELETE FROM ONLY {}")
        return with_placeholders(only.format(self.table))

    @cached_property
    def delete_whole(self) -> bytes:
        """Delete one row that equals the given one in every column: for tables without a key."""
        return with_placeholders(sql.SQL("DELETE FROM {} AS t WHERE {}").format(self.table, self._same_row()))

    def rows(self, rows: Sequence[Row]) -> RowArray:
        """Encode whole rows; UNCHANGED becomes NULL, for a statement that does not look at that column."""
        return _array(self._row_type.oid, [self._encode_row(row) for row in rows])

    def keys(self, keys: Sequence[Row]) -> RowArray:
        """Encode keys: rows in which all other columns are NULL."""
        return _array(self._row_type.oid, [self._encode_key(key) for key in keys])

    def _update(self, assigned: tuple[int, ...]) -> bytes | None:
        """Set the columns at these positions, where the key did not change. None: there is nothing to set."""
        names = [self.columns[at] for at in assigned if at not in self.route.key]
        names = [name for name in names if name not in self._fixed]
        if not names:
            return None
        return with_placeholders(
            sql.SQL("UPDATE {} AS t SET {} FROM unnest(%b::{}) AS s WHERE {}{}").format(
                self.table, _assignments(names, "s"), self._rows, self._same_key(), self._same_fixed(assigned, "s")
            )
        )

    def _update_key(self, assigned: tuple[int, ...]) -> bytes:
        """Set the columns at these positions in the one row of another key: parameters new rows, old keys."""
        if self._fixed & set(self.key):
            raise RowRejected(
                f"target: {self.route} refuses a new key: its key column is GENERATED ALWAYS AS IDENTITY",
                hint="ALTER TABLE … ALTER COLUMN … SET GENERATED BY DEFAULT on the target, then start again",
            )
        names = [self.columns[at] for at in assigned if self.columns[at] not in self._fixed]
        return with_placeholders(
            sql.SQL("UPDATE {} AS t SET {} FROM unnest(%b::{}) AS n, unnest(%b::{}) AS s WHERE {}{}").format(
                self.table,
                _assignments(names, "n"),
                self._rows,
                self._rows,
                self._same_key(),
                self._same_fixed(assigned, "n"),
            )
        )

    def _update_whole(self, assigned: tuple[int, ...]) -> bytes:
        """Set columns of one row that equals the given old one: parameters new rows, old rows."""
        names = [self.columns[at] for at in assigned if self.columns[at] not in self._fixed]
        return with_placeholders(
            sql.SQL("UPDATE {} AS t SET {} FROM unnest(%b::{}) AS n WHERE {}{}").format(
                self.table, _assignments(names, "n"), self._rows, self._same_row(), self._same_fixed(assigned, "n")
            )
        )

    def _same_key(self) -> sql.Composed:
        return sql.SQL(" AND ").join(
            sql.SQL("{} OPERATOR({}.=) {}").format(
                sql.Identifier("t", name),
                # With an empty search_path an extension's own `=` would not be found, or text's be taken instead.
                sql.Identifier(self.route.target.by_name[name].type.equality_schema),
                sql.Identifier("s", name),
            )
            for name in self.key
        )

    def _same_fixed(self, assigned: tuple[int, ...], row: str) -> sql.Composed:
        """What no UPDATE can set must be right already; where it is not, no row is hit, and that is seen."""
        return sql.SQL("").join(
            sql.SQL(" AND {} = {}").format(sql.Identifier("t", name), sql.Identifier(row, name))
            for name in [self.columns[at] for at in assigned]
            if name in self._fixed
        )

    def _same_row(self) -> sql.Composed:
        """One row among its duplicates. ``*=`` compares binary images: it knows every type, NULL, NaN and -0.

        Without the casts to ``record`` PostgreSQL looks for an operator ``*=`` of each column's type, and finds none.
        """
        return sql.SQL(
            "(t.tableoid, t.ctid) = (SELECT c.tableoid, c.ctid FROM {} AS c, unnest(%b::{}) AS s"
            " WHERE ROW({})::record OPERATOR(pg_catalog.*=) ROW({})::record LIMIT 1)"
        ).format(
            self.table,
            self._rows,
            _comma(sql.Identifier("c", name) for name in self.columns),
            _comma(map(self._as_stored, self.columns)),
        )

    def _as_stored(self, name: str) -> sql.Composable:
        """A field of ``s`` in the column's own type: a domain may have come as its base type."""
        field, column = sql.Identifier("s", name), self.route.target.by_name[name]
        if column.type.kind != "d":
            return field
        return sql.SQL("{}::{}").format(field, sql.SQL(column.type_sql))


def truncate(tables: Sequence[TableStatements], *, restart_identity: bool) -> bytes:
    """Empty all of these together. No CASCADE: the source lists every table that its own cascade reached."""
    only = [
        sql.SQL("ONLY {}").format(table.table) if table.route.target.kind == "r" else table.table for table in tables
    ]
    identity = sql.SQL("RESTART IDENTITY" if restart_identity else "CONTINUE IDENTITY")
    return with_placeholders(sql.SQL("TRUNCATE {} {}").format(_comma(only), identity))


def _comma(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)


def _assignments(names: Sequence[str], row: str) -> sql.Composed:
    return _comma(sql.SQL("{} = {}").format(sql.Identifier(name), sql.Identifier(row, name)) for name in names)


def _record_encoder(route: Route, row_type: RowType, positions: Iterable[int]) -> Callable[[Row], bytes]:
    """Fields at ``positions`` of the route → one array element: a record of all the target's columns.

    A bytes template does it in one C call per row; joining a list of OIDs and fields took three times as long.
    """
    filled = {route.columns[at].target.name: index for index, at in enumerate(positions)}
    columns = route.target.columns
    template = b"%b" + len(columns).to_bytes(4, "big").replace(b"%", b"%%")
    order = []
    for column, oid in zip(columns, row_type.oids, strict=True):
        template += oid.to_bytes(4, "big").replace(b"%", b"%%")
        if column.name in filled:
            template += b"%b"
            order.append(filled[column.name])
        else:
            template += NULL
    fixed_size = 4 + 8 * len(columns) - 4 * len(order)  # count, OIDs, NULLs
    in_order = order == list(range(len(order)))

    def encode(fields: Row) -> bytes:
        if not in_order:
            fields = tuple([fields[at] for at in order])
        if UNCHANGED in fields:
            fields = tuple([NULL if field is UNCHANGED else field for field in fields])
        size = fixed_size + sum(map(len, fields))
        return template % (size.to_bytes(4, "big"), *fields)

    return encode


def _array(element_oid: int, elements: Sequence[bytes]) -> RowArray:
    """A one-dimensional array: dimensions, no-NULLs flag, element OID, length, lower bound, elements."""
    header = (1).to_bytes(4, "big") + bytes(4) + element_oid.to_bytes(4, "big")
    return RowArray(header + len(elements).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"".join(elements))
