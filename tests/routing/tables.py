"""Tables and routes made by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from replicator.model.row import Field, field
from replicator.model.schema import Column, ForeignKey, Table, Type
from replicator.routing.idmap import MapSpec
from replicator.routing.route import Route, RouteSpec, plan_routes

INT = Type(23, "integer", "b", "N", True)
TEXT = Type(25, "text", "b", "S", True)
UUID = Type(2950, "uuid", "b", "U", True)


def number(value: int) -> Field:
    return field(value.to_bytes(4, "big", signed=True))


def text(value: str) -> Field:
    return field(value.encode())


def column(name: str, type_: Type = INT, **options: object) -> Column:
    given: dict[str, object] = {
        "typmod": -1, "type_sql": type_.name, "not_null": False, "default": None, "generated": False, "identity": "",
    }  # fmt: skip
    return Column(name=name, type=type_, **(given | options))  # type: ignore[arg-type]


def table(
    name: str,
    columns: Iterable[Column],
    *,
    key: Sequence[str] = (),
    identity: str = "d",
    index: Sequence[str] = (),
    references: Iterable[str] = (),
    on_delete: str = "a",
) -> Table:
    return Table(
        name=("public", name),
        oid=sum(name.encode()) + 20_000,
        kind="r",
        type_oid=0,
        type_array_oid=0,
        columns=tuple(replace(each, attnum=each.attnum or at) for at, each in enumerate(columns, start=1)),
        primary_key=tuple(key),
        replica_identity=identity,
        identity_index=tuple(index),
        foreign_keys=tuple(
            ForeignKey(f"{name}_{other}", ("x",), ("public", other), ("id",), on_delete) for other in references
        ),
        rows_estimate=0,
        bytes_estimate=0,
        row_security=False,
        owner="postgres",
    )


def route(
    source: Table, target: Table, *, maps: Sequence[MapSpec] = (), columns: Mapping[str, str] | None = None
) -> Route:
    """The one route from source to target; a fault fails the test."""
    spec = RouteSpec(source.name, target.name, columns or {})
    routes, faults = plan_routes([spec], {source.name: source}, {target.name: target}, maps)
    assert not [fault for fault in faults if fault.table == target.name]
    return routes[0]
