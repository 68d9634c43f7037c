"""RELATION messages held against the routes, and the tables of the stream that come out of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from replicator import pgoutput
from replicator.errors import ProtocolError, SchemaMismatch
from replicator.model.lsn import ZERO, Lsn
from replicator.model.row import Row
from replicator.model.schema import TableName, show_table
from replicator.routing.idmap import IdMaps
from replicator.routing.mapper import Mapper
from replicator.routing.route import Route
from replicator.stream.lookup import LookupFollower

# Changes from before the alteration that still wait in the slot come in the old shape, and no new start changes that.
_COPY_AGAIN = "should that not help, copy the table again first: `replicator snapshot --table {}`"
_PLAN_ANEW = "start again: the route is planned anew from the source's catalog; " + _COPY_AGAIN


class RoutedTable:
    """One table of the stream: its route compiled for the columns that the source sends now.

    Compared by identity; the applier keeps its statements per route.
    """

    __slots__ = ("covers_target", "has_key", "key_of", "lookups", "mapper", "mismatch", "old_key", "relation",
                 "route", "row", "sent_width", "skip_before", "width")  # fmt: skip

    def __init__(
        self,
        route: Route,
        relation: pgoutput.Relation,
        maps: IdMaps,
        skip_before: Lsn,
        lookups: tuple[LookupFollower, ...],
    ) -> None:
        """``skip_before``: the table's own snapshot holds every transaction that committed before."""
        self.route = route
        self.relation = relation
        self.mapper = Mapper(route, [column.name for column in relation.columns], maps)
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
        routes: list[Route],
        maps: IdMaps,
        lookups: Mapping[TableName, tuple[LookupFollower, ...]],
        *,
        snapshot_lsns: Mapping[TableName, Lsn],
        known_columns: Mapping[TableName, tuple[str, ...]],
        ignore_new_columns: bool,
    ) -> None:
        """``snapshot_lsns`` and ``known_columns`` are by target table, as ``table_state`` has them."""
        self._routes = {route.source.name: route for route in routes}
        self._maps = maps
        self._lookups = lookups
        self._snapshot_lsns = snapshot_lsns
        self._known_columns = known_columns
        self._ignore_new_columns = ignore_new_columns
        self._strangers: dict[int, TableName] = {}
        self.by_oid: dict[int, RoutedTable] = {}
        self.mapped: list[RoutedTable] = []  # those that can meet unmapped IDs

    def add(self, relation: pgoutput.Relation, final_lsn: Lsn) -> None:
        """Enter a relation, or its new shape, with the transaction that commits at ``final_lsn``.

        One that no route takes is remembered, and refused with its first row: a partition is announced
        besides its root, and its rows come as the root's. So is a shape from before the table's own snapshot that
        its route cannot take: that is how copying a table again mends it.

        Raises:
            SchemaMismatch: the route cannot take its rows.
        """
        route = self._routes.get((relation.namespace, relation.name))
        if route is None:
            self._strangers[relation.oid] = relation.namespace, relation.name
            self.by_oid.pop(relation.oid, None)
            return
        self._strangers.pop(relation.oid, None)
        before = self.by_oid.get(relation.oid)
        skip_before = self._snapshot_lsns.get(route.name, ZERO)
        lookups = self._lookups.get(route.source.name, ())
        mismatch = None
        try:
            route = fit_relation(
                route,
                relation,
                known=self._known_columns.get(route.name, ()),
                seen=before.route.source_columns if before is not None else (),
                ignore_new=self._ignore_new_columns,
            )
        except SchemaMismatch as exc:
            if final_lsn >= skip_before or lookups:  # a lookup follows its rows from before the snapshot too
                raise
            route, mismatch = replace(route, source=replace(route.source, replica_identity="n"), columns=()), exc
        table = self.by_oid[relation.oid] = RoutedTable(route, relation, self._maps, skip_before, lookups)
        if mismatch is not None:
            table.refuse(mismatch)
        self.mapped = [table for table in self.by_oid.values() if table.route.maps]

    def __getitem__(self, oid: int) -> RoutedTable:
        try:
            return self.by_oid[oid]
        except KeyError:
            pass
        if oid in self._strangers:
            raise SchemaMismatch(
                f"the stream brings rows of {show_table(self._strangers[oid])}, which no route takes",
                hint="was a table renamed or added to the publication? Correct `tables`, then start again",
            )
        raise ProtocolError(f"rows of relation {oid} came before its RELATION message")


def fit_relation(
    route: Route,
    relation: pgoutput.Relation,
    *,
    known: tuple[str, ...] = (),
    seen: Collection[str] = (),
    ignore_new: bool = False,
) -> Route:
    """Hold a RELATION message against the route; the route for rows of this shape.

    The catalog that the route was planned from may be ahead of the stream: a column that was added later is not
    sent yet, and keeps the target's default meanwhile.

    Args:
        known: the source columns at snapshot time; empty: those of the catalog.
        seen: the columns of the shape before this one.
        ignore_new: let columns pass that the route does not know.

    Raises:
        SchemaMismatch: naming the column and the remedy.
    """
    sent = {column.name: column for column in relation.columns}
    missing = [name for name in route.source_columns if name not in sent]
    for name in missing:
        if not known or name in known or name in seen:
            raise SchemaMismatch(
                f"{route}: the source no longer sends column {name}: it was dropped or renamed",
                hint="drop or rename it on the target too, or route it in the settings, then start again",
            )
    for column in route.columns:
        name = column.source.name
        if name in sent and sent[name].type_oid != column.source.type.oid:
            raise SchemaMismatch(
                f"{route}: the type of source column {name} has changed",
                hint=f"change it on the target too, then start again; {_COPY_AGAIN.format(route)}",
            )
    _check_identity(route, relation)
    homeless = set(route.dropped) & set(known or route.dropped)
    unknown = sorted(set(sent) - set(route.source_columns) - homeless)
    if unknown:
        _check_unknown(route, unknown, known, ignore_new=ignore_new)
    if not missing:
        return route
    return replace(
        route,
        columns=tuple(column for column in route.columns if column.source.name in sent),
        defaulted=(*route.defaulted, *(c.target.name for c in route.columns if c.source.name in missing)),
    )


def _check_unknown(route: Route, unknown: list[str], known: Collection[str], *, ignore_new: bool) -> None:
    """Columns that the route does not know: only those that are certainly new may be ignored."""
    # One that is neither in the catalog nor was known may be newer than the catalog as we read it.
    past = [name for name in unknown if name in known and name not in route.source.by_name]
    if past:
        raise SchemaMismatch(
            f"{route}: the stream still brings rows from before column {', '.join(past)} was dropped or renamed "
            "on the source",
            hint="do the same on the target, if you have not; then `replicator snapshot --table "
            f"{route}` copies the table as it is now, and start again",
        )
    gone = [name for name in known if name not in route.source.by_name and name in route.defaulted]
    if gone:
        raise SchemaMismatch(
            f"{route}: the source sends column {', '.join(unknown)}, which the route does not know, and no longer "
            f"{', '.join(gone)}",
            hint="if it was renamed, rename it on the target too; if it is new, add it to the target; or route it in "
            "the settings; then start again",
        )
    if not ignore_new:
        raise SchemaMismatch(
            f"{route}: the source sends a column that the route does not know: {', '.join(unknown)}",
            hint='add it to the target, or set on_new_column = "ignore" under [stream], then start again',
        )


def _check_identity(route: Route, relation: pgoutput.Relation) -> None:
    if relation.replica_identity != route.source.replica_identity:
        raise SchemaMismatch(
            f"{route}: the replica identity of the source table has changed",
            hint=_PLAN_ANEW.format(route),
        )
    if relation.replica_identity in "di":
        flagged = {column.name for column in relation.columns if column.is_key}
        if flagged != set(route.source.key):
            raise SchemaMismatch(
                f"{route}: the key columns of the source table have changed",
                hint=_PLAN_ANEW.format(route),
            )


def check_width(table: RoutedTable, row: Row) -> None:
    """A tuple must have as many fields as its RELATION has columns."""
    if len(row) != table.sent_width:
        raise SchemaMismatch(f"{table}: a row of {len(row)} fields, its relation has {table.sent_width}")
