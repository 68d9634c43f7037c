"""What a table was when its rows were copied, and what has become of it since: columns told by attnum, not by name.

A column keeps its attnum through every RENAME and ALTER TYPE, and a column that is dropped and added again gets
another one. So the records tell a rename from a new column, and a column from its successor of the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from replicator.model.schema import Column
from replicator.routing.route import Route


@dataclass(frozen=True, slots=True)
class ColumnRecord:
    """One column of the source."""

    attnum: int
    names: tuple[str, ...]  # all that it has had, the latest last
    type_name: str
    typmod: int
    home: int | None  # attnum of the target column that it feeds
    copied: bool  # it was there when the rows were copied: the stream brings it until it is dropped


@dataclass(frozen=True)
class TableRecord:
    """One table, as it was accepted last. ``leaves``: partitions that it has had."""

    source_oid: int
    target_oid: int
    filenode: int
    target_columns: int  # the target's highest attnum when the rows were copied
    leaves: tuple[tuple[int, str], ...]
    columns: tuple[ColumnRecord, ...]

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
                }
                for column in self.columns
            ],
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
                    each["attnum"], tuple(each["names"]), each["type"], each["typmod"], each["home"], each["copied"]
                )
                for each in document["columns"]
            ),
        )


def record_of(route: Route) -> TableRecord:
    """The record of a table whose rows are copied now."""
    homes = homes_of(route)
    return TableRecord(
        source_oid=route.source.oid,
        target_oid=route.target.oid,
        filenode=route.source.filenode,
        target_columns=max((column.attnum for column in route.target.columns), default=0),
        leaves=route.source.leaves,
        columns=tuple(_enter(column, homes, copied=True) for column in sent_columns(route)),
    )


def renewed(record: TableRecord, route: Route, *, with_homeless: bool) -> TableRecord:
    """The record once the route was accepted as it is now. Columns that are no more stay in it: the stream may be
    behind, and bring them still.

    Args:
        with_homeless: enter new columns without a home too: rows pass without their values.
    """
    homes = homes_of(route)
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


def homes_of(route: Route) -> dict[int, Column]:
    """By attnum of the source column, the target column that it feeds."""
    return {column.source.attnum: column.target for column in route.columns}


def sent_columns(route: Route) -> Iterator[Column]:
    """The source's columns that the stream brings."""
    return (column for column in route.source.columns if not column.generated)


def _enter(column: Column, homes: Mapping[int, Column], *, copied: bool) -> ColumnRecord:
    home = homes.get(column.attnum)
    return ColumnRecord(
        attnum=column.attnum,
        names=(column.name,),
        type_name=column.type.name,
        typmod=column.typmod,
        home=None if home is None else home.attnum,
        copied=copied,
    )
