"""Lanes: disjoint sets of tables, each streamed through a slot of its own by a process of its own. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from replicator.model.schema import TableName, parse_table_name, show_table, show_tables
from replicator.routing.idmap import MapSpec
from replicator.routing.route import Fault, Route, RouteSpec

FIRST = 1  # it takes every table that no other lane names

_ONE_LANE = (
    "put tables that reference each other into one lane, or GRANT SET ON PARAMETER session_replication_role to the "
    "target's role (server 15+)"
)


def assign(lanes: Mapping[int, Sequence[str]]) -> dict[TableName, int]:
    """Target table → lane, for the tables that the settings name.

    Raises:
        ValueError: lanes are not numbered 2, 3, …, or a table is in two of them.
    """
    if sorted(lanes) != list(range(FIRST + 1, FIRST + 1 + len(lanes))):
        numbers = ", ".join(map(str, sorted(lanes)))
        raise ValueError(
            f"lanes: they are numbered {numbers}: number them 2, 3, … without a gap; lane 1 takes the rest"
        )
    found: dict[TableName, int] = {}
    for number, names in sorted(lanes.items()):
        for name in map(parse_table_name, names):
            if found.setdefault(name, number) != number:
                raise ValueError(
                    f"lanes: table {show_table(name)} is in lanes {found[name]} and {number}: name it in one of them"
                )
    return found


def refuse_strangers(lane_of: Mapping[TableName, int], tables: Collection[TableName]) -> None:
    """Raise ValueError for tables that are not among ``tables``, those to replicate; and if none is left for lane 1."""
    unknown = sorted(lane_of.keys() - set(tables))
    if unknown:
        raise ValueError(f"lanes: not among the tables to replicate: {show_tables(unknown)}: add them to `tables`, or "
                         "correct their names")  # fmt: skip
    if not set(tables) - lane_of.keys():
        raise ValueError("lanes: no table is left for lane 1: leave one lane's tables out of [lanes]")


def refuse_split_lookups(lane_of: Mapping[TableName, int], maps: Iterable[MapSpec], specs: Iterable[RouteSpec]) -> None:
    """Raise ValueError for a lookup whose table is in another lane than a table with one of its columns.

    The stream of one lane cannot follow the rows of another.

    Args:
        specs: of tables whose source has another name.
    """
    sources = {spec.source: spec.target for spec in specs}
    for spec in maps:
        if spec.table is None:
            continue
        followed = sources.get(spec.table, spec.table)
        number = lane_of.get(followed, FIRST)
        apart = sorted(
            {(schema, name) for schema, name, _ in spec.columns if lane_of.get((schema, name), FIRST) != number}
        )
        if apart:
            raise ValueError(
                f"lanes: [id_maps.{spec.name}] looks up {show_table(spec.table)} of lane {number} for "
                f"{show_tables(apart)} of another lane, which cannot follow its rows: put these tables into one lane"
            )


def crossing_keys(
    lane_of: Mapping[TableName, int], routes: Iterable[Route], planned: Collection[TableName]
) -> list[Fault]:
    """Foreign keys of the target from these routes' tables to tables of other lanes: faults where they are live.

    Each lane goes at its own pace, so that a row may come before the one that it references.

    Args:
        planned: all target tables, of whichever lane.
    """

    def number(name: TableName) -> int:
        return lane_of.get(name, FIRST)

    return [
        Fault(
            route.name,
            f"foreign key {key.name}, which is live, leads from lane {number(route.name)} to "
            f"{show_table(key.references)} of lane {number(key.references)}",
            _ONE_LANE,
        )
        for route in routes
        for key in route.target.foreign_keys
        if key.references in planned and number(key.references) != number(route.name)
    ]
