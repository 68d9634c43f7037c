"""How one table is compared: what each side selects, in which order, and how rows of given keys are found again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

from psycopg import sql

from replicator.model.row import Row, split
from replicator.model.schema import Table
from replicator.postgres.connection import Side, table_identifier
from replicator.routing.route import Route
from replicator.verify.keys import Key, KeyPlan, plan_key
from replicator.verify.projection import column_sql, source_sql, type_sql


@dataclass(frozen=True)
class Plan:
    """One route made comparable. Both sides select the route's columns in the target's form, then the key's extras."""

    route: Route
    key: KeyPlan
    ordered: bool  # both sides can send their rows in the same order

    @property
    def name(self) -> str:
        """The target table, as people write it."""
        return str(self.route)

    @cached_property
    def key_positions(self) -> tuple[int, ...]:
        """Where the key's columns stand in a selected row."""
        return tuple(column.position for column in self.key.columns)

    def key_of(self, fields: Row) -> Key:
        """The key of a row given as fields."""
        return tuple([fields[position] for position in self.key_positions])

    def key_of_row(self, row: bytes) -> Key:
        """The key of a row as COPY sends it."""
        return self.key_of(split(row))

    def rank(self, key: Key) -> tuple[object, ...]:
        """Orders keys as both servers do."""
        return tuple([column.rank(value) for column, value in zip(self.key.columns, key, strict=True)])

    def copy(self, side: Side) -> sql.Composed:
        """``COPY (SELECT …) TO STDOUT`` of the whole table."""
        table = self.route.source if side == "source" else self.route.target
        order: sql.Composable = sql.SQL("")
        if self.ordered:
            orders = map(attrgetter(f"{side}_order"), self.key.columns)
            order = sql.SQL(" ORDER BY {}").format(sql.SQL(", ").join(orders))
        return sql.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT (FORMAT binary)").format(
            sql.SQL(", ").join(self._values(side)), from_sql(table), order
        )

    def select(self, side: Side) -> sql.Composed:
        """The rows of the keys in ``$1``, ``$2``, …: one array per key column. Each row ends with its xmin."""
        return self._select(side, [*self._values(side), _VERSION])

    def select_versions(self) -> sql.Composed:
        """Key and xmin of the source rows of the keys in ``$1``, ``$2``, …."""
        values = self._values("source")
        return self._select("source", [*(values[position] for position in self.key_positions), _VERSION])

    def select_key_text(self) -> sql.Composed:
        """The keys in ``$1``, ``$2``, … as text, in their order."""
        names = _names(len(self.key.columns))
        texts = sql.SQL(", ").join(sql.SQL("k.{}::text").format(name) for name in names)
        return sql.SQL("SELECT {} FROM {} AS k ({}) ORDER BY k.n").format(
            texts,
            sql.SQL("unnest({}) WITH ORDINALITY").format(_parameters(len(names))),
            sql.SQL(", ").join([*names, sql.Identifier("n")]),
        )

    def count(self, side: Side) -> sql.Composed:
        """The number of rows."""
        table = self.route.source if side == "source" else self.route.target
        return sql.SQL("SELECT pg_catalog.count(*) FROM {}").format(from_sql(table))

    def _values(self, side: Side) -> list[sql.Composable]:
        if side == "source":
            return [*map(source_sql, self.route.columns), *self.key.source_extras]
        return [*(column_sql(column.target) for column in self.route.columns), *self.key.target_extras]

    def _select(self, side: Side, values: Sequence[sql.Composable]) -> sql.Composed:
        table = self.route.source if side == "source" else self.route.target
        columns = self.key.columns
        names = _names(len(columns))
        matches = [
            sql.SQL("{} = k.{}{}").format(
                getattr(column, f"{side}_match"),
                name,
                type_sql(f"::{column.element_type}" if column.element_type else ""),
            )
            for column, name in zip(columns, names, strict=True)
        ]
        return sql.SQL("SELECT {} FROM {} JOIN unnest({}) AS k ({}) ON {}").format(
            sql.SQL(", ").join(values),
            from_sql(table),
            _parameters(len(columns)),
            sql.SQL(", ").join(names),
            sql.SQL(" AND ").join(matches),
        )


# The version of a row: every UPDATE makes a new one, also one that changes nothing or changes something back.
_VERSION = sql.SQL("r.xmin::text")


def plan_table(route: Route, *, utf8: bool) -> Plan:
    """The plan of a route. ``utf8``: the bytes of text order alike on both servers and on the wire."""
    key = plan_key(route)
    ordered = bool(key.columns) and not key.mapped and (utf8 or not key.by_text)
    return Plan(route, key, ordered)


def from_sql(table: Table) -> sql.Composable:
    """The table under its alias ``r``; ``ONLY`` itself where it is no partitioned table."""
    only = sql.SQL("ONLY ") if table.kind == "r" else sql.SQL("")
    return sql.SQL("{}{} AS r").format(only, table_identifier(table.name))


def _names(count: int) -> list[sql.Identifier]:
    return [sql.Identifier(f"k{at}") for at in range(count)]


def _parameters(count: int) -> sql.Composable:
    return sql.SQL(", ").join(sql.SQL(f"${at}") for at in range(1, count + 1))
