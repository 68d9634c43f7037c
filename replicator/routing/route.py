"""Routes: for each table, which source column feeds which target column, and what happens to it on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from replicator.model.schema import Column, Table, TableName, show_table
from replicator.routing.idmap import MAPPABLE_TYPES, MapSpec
from replicator.routing.wire import Rewrite, fit


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """What the settings say of one table. ``columns``: target column → source column, where the names differ."""

    source: TableName
    target: TableName
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a table cannot be replicated as it stands, and the remedy."""

    table: TableName
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class RouteColumn:
    """One target column and the source column that feeds it."""

    source: Column
    target: Column
    rewrite: Rewrite | None = None  # where the wire forms differ by OIDs
    id_map: MapSpec | None = None


@dataclass(frozen=True)
class Route:
    """One table's way from the source to the target. Rows of a route have one field per entry of ``columns``."""

    source: Table
    target: Table
    columns: tuple[RouteColumn, ...]  # in the target's attnum order
    dropped: tuple[str, ...]  # source columns without a home
    defaulted: tuple[str, ...]  # target columns without a source: they keep their default

    @property
    def name(self) -> TableName:
        """The target table's name: what users call the route."""
        return self.target.name

    @cached_property
    def key(self) -> tuple[int, ...]:
        """Positions in ``columns`` of the columns that identify a source row; empty: only the whole row does."""
        positions = {column.source.name: at for at, column in enumerate(self.columns)}
        return tuple(positions[name] for name in self.source.key)

    @cached_property
    def maps(self) -> tuple[MapSpec, ...]:
        """The ID maps that this route's columns pass through, each once."""
        return tuple({c.id_map.name: c.id_map for c in self.columns if c.id_map is not None}.values())

    @cached_property
    def is_verbatim(self) -> bool:
        """Rows pass byte for byte: nothing is mapped or rewritten."""
        return all(column.rewrite is None and column.id_map is None for column in self.columns)

    @property
    def source_columns(self) -> tuple[str, ...]:
        """Source column names in the order of ``columns``."""
        return tuple(column.source.name for column in self.columns)

    @property
    def target_columns(self) -> tuple[str, ...]:
        """Target column names in the order of ``columns``."""
        return tuple(column.target.name for column in self.columns)

    def __str__(self) -> str:
        return show_table(self.name)


def plan_routes(
    specs: Iterable[RouteSpec],
    sources: Mapping[TableName, Table],
    targets: Mapping[TableName, Table],
    maps: Sequence[MapSpec] = (),
) -> tuple[list[Route], list[Fault]]:
    """The routes that the settings ask for, and every reason why some cannot be."""
    routes: list[Route] = []
    faults: list[Fault] = []
    mapped = {column: spec for spec in maps for column in spec.columns}
    for spec in specs:
        source, target = sources.get(spec.source), targets.get(spec.target)
        if source is None:
            faults.append(Fault(spec.target, f"there is no table {show_table(spec.source)} on the source",
                                "correct `tables` in the settings"))  # fmt: skip
        elif target is None:
            faults.append(Fault(spec.target, f"there is no table {show_table(spec.target)} on the target",
                                "create it: the replicator moves rows, not schemas"))  # fmt: skip
        else:
            route, found = _plan_route(spec, source, target, mapped)
            routes.append(route)
            faults += found
    faults += _unknown_map_columns(routes, maps)
    return routes, faults


def _plan_route(
    spec: RouteSpec, source: Table, target: Table, mapped: Mapping[tuple[str, str, str], MapSpec]
) -> tuple[Route, list[Fault]]:
    columns: list[RouteColumn] = []
    defaulted: list[str] = []
    faults: list[Fault] = []
    available = {column.name: column for column in source.columns if not column.generated}
    for column in target.columns:
        if column.generated:
            continue
        source_name = spec.columns.get(column.name, column.name)
        feeding = available.get(source_name)
        if feeding is None:
            if column.name in spec.columns:
                faults.append(Fault(target.name, f"column {column.name}: the source has no column {source_name}",
                                    f"correct [routes.{target}.columns]"))  # fmt: skip
            elif column.not_null and column.default is None and not column.identity:
                faults.append(Fault(target.name, f"column {column.name} is NOT NULL, has no default and no source",
                                    f"name its source in [routes.{target}.columns], or give it a default"))  # fmt: skip
            defaulted.append(column.name)
            continue
        made, fault = _plan_column(target, feeding, column, source.key, mapped.get((*target.name, column.name)))
        columns.append(made)
        if fault is not None:
            faults.append(fault)
    used = {column.source.name for column in columns}
    faults += [
        Fault(target.name, f"there is no target column {name}", f"correct [routes.{target}.columns]")
        for name in spec.columns
        if name not in target.by_name
    ]
    faults += [
        Fault(target.name, f"key column {name} of the source has no home on the target", "route every key column")
        for name in source.key
        if name not in used
    ]
    if not columns and not faults:
        faults.append(Fault(target.name, "source and target have no column in common",
                            f"name the sources of its columns in [routes.{target}.columns]"))  # fmt: skip
    dropped = tuple(name for name in available if name not in used)
    return Route(source, target, tuple(columns), dropped, tuple(defaulted)), faults


def _plan_column(
    table: Table, source: Column, target: Column, key: Sequence[str], spec: MapSpec | None
) -> tuple[RouteColumn, Fault | None]:
    fault = None
    how = fit(source.type, target.type)
    if how.fault:
        alter = f"ALTER TABLE {show_table(table.name)} ALTER COLUMN {target.name} TYPE {source.type_sql}"
        fault = Fault(table.name, f"column {target.name}: {how.fault}",
                      f"give both sides types of the same binary format, by {alter} on the target, say")  # fmt: skip
    elif spec is not None and (target.type.name not in MAPPABLE_TYPES or how.rewrite is not None):
        fault = Fault(table.name, f"column {target.name}: type {target.type.name} cannot pass through an ID map",
                      f"take it out of [id_maps.{spec.name}]")  # fmt: skip
    elif target.identity == "a" and source.identity != "a" and source.name not in key:
        fault = Fault(table.name, f"column {target.name} is GENERATED ALWAYS AS IDENTITY here and not on the source",
                      "ALTER TABLE … ALTER COLUMN … SET GENERATED BY DEFAULT: an UPDATE could not set it")  # fmt: skip
    return RouteColumn(source, target, how.rewrite, spec), fault


def _unknown_map_columns(routes: Sequence[Route], maps: Sequence[MapSpec]) -> list[Fault]:
    known = {(*route.name, name) for route in routes for name in route.target_columns}
    sources = {route.source.name for route in routes}
    faults = [
        Fault((schema, table), f"[id_maps.{spec.name}] names column {table}.{column}, which no route fills",
              f"correct the columns of [id_maps.{spec.name}]")
        for spec in maps
        for schema, table, column in sorted(spec.columns - known)
    ]  # fmt: skip
    faults += [
        Fault(spec.table, f"[id_maps.{spec.name}] looks up {show_table(spec.table)}, which is not replicated",
              "add the table to `tables`: a lookup follows its change stream")
        for spec in maps
        if spec.table is not None and spec.table not in sources
    ]  # fmt: skip
    return faults
