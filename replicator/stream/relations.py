"""RELATION messages held against the routes, and the tables of the stream that come out of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import replace

from replicator import pgoutput
from replicator.errors import ProtocolError, SchemaMismatch
from replicator.model.lsn import ZERO, Lsn
from replicator.model.row import Row
from replicator.model.schema import TableName, show_table
from replicator.routing.idmap import IdMaps
from replicator.routing.mapper import Mapper
from replicator.routing.record import TableRecord
from replicator.routing.route import Route
from replicator.stream.fitting import Shape, fit_relation
from replicator.stream.lookup import LookupFollower

_NEVER = Lsn(2**64 - 1)  # behind every commit


class RoutedTable:
    """One table of the stream: its route compiled for the columns that the source sends now.

    Compared by identity; the applier keeps its statements per route.
    """

    __slots__ = ("attnums", "covers_target", "has_key", "key_of", "layout", "lookups", "mapper", "mismatch", "old_key",
                 "relation", "route", "row", "sent_width", "skip_before", "width")  # fmt: skip

    def __init__(
        self,
        route: Route,
        relation: pgoutput.Relation,
        maps: IdMaps,
        skip_before: Lsn,
        lookups: tuple[LookupFollower, ...],
        shape: Shape | None = None,
    ) -> None:
        """``skip_before``: the table's own snapshot holds every transaction that committed before.

        ``shape``: the columns that are sent, by attnum and by the names that the route knows them by.
        """
        self.route = route
        self.relation = relation
        self.attnums = shape.attnums if shape is not None else ()
        self.layout = shape.layout if shape is not None else tuple(column.name for column in relation.columns)
        self.mapper = Mapper(route, self.layout, maps)
        self.row: Callable[[Row], Row] = self.mapper.row
        self.old_key: Callable[[Row], Row] = self.mapper.old_key
        self.key_of: Callable[[Row], Row] = self.mapper.key_of
        self.skip_before = skip_before
        self.lookups = lookups
        self.mismatch: SchemaMismatch | None = None
        self.has_key = bool(route.key)
        self.width = len(route.columns)
        self.sent_width = len(relation.columns)
        # A target column that an UPDATE cannot set, because we do not fill it or because it is GENERATED ALWAYS AS
        # IDENTITY, keeps its value there and gets another in a delete and insert: neither may stand for the other.
        self.covers_target = not route.defaulted and not any(
            column.target.identity == "a" for at, column in enumerate(route.columns) if at not in route.key
        )

    def refuse(self, mismatch: SchemaMismatch) -> None:
        """Take no row of this shape: the table's snapshot holds them all, should none come from behind it."""

        def raise_mismatch(_: Row) -> Row:
            raise mismatch

        self.mismatch = mismatch
        self.row = self.old_key = self.key_of = raise_mismatch

    def __str__(self) -> str:
        return str(self.route)


class Relations:
    """The tables of the stream by relation OID, built as RELATION messages arrive."""

    def __init__(
        self,
        routes: Iterable[Route],
        maps: IdMaps,
        lookups: Mapping[TableName, tuple[LookupFollower, ...]],
        *,
        snapshot_lsns: Mapping[TableName, Lsn],
        records: Mapping[TableName, TableRecord],
        ignore_new_columns: bool,
        settled: Collection[Hashable] = (),
    ) -> None:
        """``snapshot_lsns`` and ``records`` are by target table, as ``table_state`` has them.

        ``settled``: doubts that the routes were planned anew for.
        """
        self._routes = {route.source.oid: route for route in routes}
        self._by_name = {route.source.name: route for route in self._routes.values()}
        self._maps = maps
        self._lookups = lookups
        self._snapshot_lsns = snapshot_lsns
        self._records = records
        self._ignore_new_columns = ignore_new_columns
        self._settled = settled
        self._strangers: dict[int, TableName] = {}
        self.by_oid: dict[int, RoutedTable] = {}
        self.mapped: list[RoutedTable] = []  # those that can meet unmapped IDs
        self.altered = False  # a relation came once more: something has been done to its table

    def add(self, relation: pgoutput.Relation, final_lsn: Lsn) -> None:
        """Enter a relation, or its new shape, with the transaction that commits at ``final_lsn``.

        A table is known by its OID: it may have had another name then, and another table that name. One that no
        route takes is remembered, and refused with its first row: a partition is announced
        besides its root, and its rows come as the root's. So is a shape from before the table's own snapshot that
        its route cannot take: that is how copying a table again mends it.

        Raises:
            SchemaMismatch: the route cannot take its rows.
        """
        before = self.by_oid.get(relation.oid)
        if before is not None:
            self.altered = True
            if before.relation == relation and before.mismatch is None:
                return
        route = self._routes.get(relation.oid)
        if route is None:
            self._add_stranger(relation, final_lsn)
            return
        name = relation.namespace, relation.name
        if name != route.source.name:
            called = f"{show_table(name)}, the plan {show_table(route.source.name)}"
            self._doubt(("name", relation.oid, name), f"{route}: the stream calls the source's table {called}")
        skip_before = self._snapshot_lsns.get(route.name, ZERO)
        lookups = self._lookups.get(route.source.name, ())
        mismatch, shape = None, None
        try:
            shape = fit_relation(
                route,
                relation,
                record=self._records.get(route.name),
                seen=before.attnums if before is not None else (),
                ignore_new=self._ignore_new_columns,
                settled=self._settled,
            )
            route = shape.route
        except SchemaMismatch as exc:
            if final_lsn >= skip_before or lookups:  # a lookup follows its rows from before the snapshot too
                raise
            route, mismatch = _without_columns(route), exc
        table = self.by_oid[relation.oid] = RoutedTable(route, relation, self._maps, skip_before, lookups, shape)
        if mismatch is not None:
            table.refuse(mismatch)
        self.mapped = [table for table in self.by_oid.values() if table.route.maps]

    def _add_stranger(self, relation: pgoutput.Relation, final_lsn: Lsn) -> None:
        """A table that no route takes. One of a route's name is that table's predecessor, or is called so no longer."""
        name = relation.namespace, relation.name
        namesake = self._by_name.get(name)
        self.by_oid.pop(relation.oid, None)
        if ("stranger", relation.oid) in self._settled:
            self._leave_out(relation, namesake, _NEVER)
        elif namesake is not None and final_lsn < self._snapshot_lsns.get(namesake.name, ZERO):
            self._leave_out(relation, namesake, self._snapshot_lsns[namesake.name])
        else:
            self._strangers[relation.oid] = name

    def _leave_out(self, relation: pgoutput.Relation, namesake: Route | None, skip_before: Lsn) -> None:
        """Take no row of it from before ``skip_before``."""
        any_route = namesake if namesake is not None else next(iter(self._routes.values()))
        table = RoutedTable(_without_columns(any_route), relation, self._maps, skip_before, ())
        table.refuse(self._stranger((relation.namespace, relation.name), relation.oid))
        self.by_oid[relation.oid] = table

    def _doubt(self, doubt: Hashable, message: str) -> None:
        if doubt not in self._settled:
            exc = SchemaMismatch(message, hint="start again: the routes are planned anew from the source's catalog")
            exc.doubt = doubt
            raise exc

    def _stranger(self, name: TableName, oid: int) -> SchemaMismatch:
        if name in self._by_name:
            exc = SchemaMismatch(
                f"the stream brings rows of another table {show_table(name)} than the one that the route was planned "
                "for: it was dropped and created again, or two tables have changed names",
                hint=f"`replicator snapshot --table {self._by_name[name]}` copies the table of that name; "
                "or do the same on the target; then start again",
            )
        else:
            exc = SchemaMismatch(
                f"the stream brings rows of {show_table(name)}, which no route takes",
                hint="was a table renamed or added to the publication? Correct `tables`, then start again",
            )
        exc.doubt = "stranger", oid
        return exc

    def __getitem__(self, oid: int) -> RoutedTable:
        try:
            return self.by_oid[oid]
        except KeyError:
            pass
        if oid in self._strangers:
            raise self._stranger(self._strangers[oid], oid)
        raise ProtocolError(f"rows of relation {oid} came before its RELATION message")


def _without_columns(route: Route) -> Route:
    return replace(route, source=replace(route.source, replica_identity="n"), columns=())


def check_width(table: RoutedTable, row: Row) -> None:
    """A tuple must have as many fields as its RELATION has columns."""
    if len(row) != table.sent_width:
        raise SchemaMismatch(f"{table}: a row of {len(row)} fields, its relation has {table.sent_width}")
