"""What a table was when its rows were copied, and what has become of it since: columns told by attnum, not by name.

A column keeps its attnum through every RENAME and ALTER TYPE, and a column that is dropped and added again gets
another one. So the records tell a rename from a new column, and a column from its successor of the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from replicator.model.schema import Column
from replicator.routing.idmap import MapSpec
from replicator.routing.route import Route, RouteColumn


@dataclass(frozen=True, slots=True)
class ColumnRecord:
    """One column of the source."""

    attnum: int
    names: tuple[str, ...]  # all that it has had, the latest last
    type_name: str
    typmod: int
    home: int | None  # attnum of the target column that it feeds
    copied: bool  # it was there when the rows were copied: the stream brings it until it is dropped
    id_map: str | None = None  # that its values have passed through


@dataclass(frozen=True)
class TableRecord:
    """One table, as it was accepted last. ``leaves``: partitions that it has had."""

    source_oid: int
    target_oid: int
    filenode: int
    target_columns: int  # the target's highest attnum when the rows were copied
    leaves: tuple[tuple[int, str], ...]
    columns: tuple[ColumnRecord, ...]
    lookups: tuple[str, ...] = ()  # ID maps whose entries were read from its rows

    @cached_property
    def by_attnum(self) -> dict[int, ColumnRecord]:
        """Columns of the source by attnum."""
        return {column.attnum: column for column in self.columns}

    def to_json(self) -> dict[str, Any]:
        """As ``table_state`` holds it."""
        return {
            "source_oid": self.source_oid,
            "target_oid": self.target_oid,
            "filenode": self.filenode,
            "target_columns": self.target_columns,
            "leaves": [list(leaf) for leaf in self.leaves],
            "columns": [
                {
                    "attnum": column.attnum,
                    "names": list(column.names),
                    "type": column.type_name,
                    "typmod": column.typmod,
                    "home": column.home,
                    "copied": column.copied,
                    "id_map": column.id_map,
                }
                for column in self.columns
            ],
            "lookups": list(self.lookups),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TableRecord:
        """Back from `to_json`."""
        return cls(
            source_oid=document["source_oid"],
            target_oid=document["target_oid"],
            filenode=document["filenode"],
            target_columns=document["target_columns"],
            leaves=tuple((oid, name) for oid, name in document["leaves"]),
            columns=tuple(
                ColumnRecord(
                    attnum=each["attnum"],
                    names=tuple(each["names"]),
                    type_name=each["type"],
                    typmod=each["typmod"],
                    home=each["home"],
                    copied=each["copied"],
                    id_map=each["id_map"],
                )
                for each in document["columns"]
            ),
            lookups=tuple(document["lookups"]),
        )


def record_of(route: Route, lookups: Iterable[MapSpec] = ()) -> TableRecord:
    """The record of a table whose rows are copied now; ``lookups``: of all tables."""
    homes = _homes(route)
    return TableRecord(
        source_oid=route.source.oid,
        target_oid=route.target.oid,
        filenode=route.source.filenode,
        target_columns=max((column.attnum for column in route.target.columns), default=0),
        leaves=route.source.leaves,
        columns=tuple(_enter(column, homes, copied=True) for column in sent_columns(route)),
        lookups=lookups_of(route, lookups),
    )


def lookups_of(route: Route, specs: Iterable[MapSpec]) -> tuple[str, ...]:
    """The lookups that follow the route's source table, each with what defines it."""
    return tuple(f"{spec.name}: {spec.key} → {spec.value}" for spec in specs if spec.table == route.source.name)


def unread_lookups(records: Iterable[tuple[Route, TableRecord | None]], specs: Iterable[MapSpec]) -> list[MapSpec]:
    """Lookups on these tables whose rows nobody has read: the table is new to the stream, or the lookup is."""
    return [
        spec
        for route, record in records
        for spec in specs
        if spec.table == route.source.name
        and not set(lookups_of(route, [spec])) <= set(record.lookups if record is not None else ())
    ]


def renewed(record: TableRecord, route: Route, *, with_homeless: bool) -> TableRecord:
    """The record once the route was accepted as it is now. Columns that are no more stay in it: the stream may be
    behind, and bring them still.

    Args:
        with_homeless: enter new columns without a home too: rows pass without their values.
    """
    homes = _homes(route)
    columns = {column.attnum: column for column in record.columns}
    for column in sent_columns(route):
        before = columns.get(column.attnum)
        if before is not None:
            names = tuple(name for name in before.names if name != column.name)
            columns[column.attnum] = replace(_enter(column, homes, copied=before.copied), names=(*names, column.name))
        elif with_homeless or column.attnum in homes:
            columns[column.attnum] = _enter(column, homes, copied=False)
    complete = all(column.attnum in columns for column in sent_columns(route))
    return replace(
        record,
        # From here on a rewrite tells of the columns that are not known yet: of all those to come.
        filenode=route.source.filenode if complete else record.filenode,
        leaves=tuple(sorted({*record.leaves, *route.source.leaves})),
        columns=tuple(columns[attnum] for attnum in sorted(columns)),
    )


def _homes(route: Route) -> dict[int, RouteColumn]:
    return {column.source.attnum: column for column in route.columns}


def sent_columns(route: Route) -> Iterator[Column]:
    """The source's columns that the stream brings."""
    return (column for column in route.source.columns if not column.generated)


def _enter(column: Column, homes: Mapping[int, RouteColumn], *, copied: bool) -> ColumnRecord:
    home = homes.get(column.attnum)
    return ColumnRecord(
        attnum=column.attnum,
        names=(column.name,),
        type_name=column.type.name,
        typmod=column.typmod,
        home=None if home is None else home.target.attnum,
        copied=copied,
        id_map=home.id_map.name if home is not None and home.id_map is not None else None,
    )
