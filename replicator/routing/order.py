"""Dependency order of tables, from the foreign keys of the side that is written."""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter

from replicator.model.schema import Table, TableName


def dependencies(tables: Iterable[Table]) -> dict[TableName, set[TableName]]:
    """Which tables each table references, within the set; references to itself left out.

    References that close a cycle are dropped one by one: within a cycle no order satisfies live constraints.
    """
    by_name = {table.name: table for table in tables}
    graph = {
        name: {key.references for key in table.foreign_keys if key.references in by_name} - {name}
        for name, table in sorted(by_name.items())
    }
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as exc:
            cycle = exc.args[1]
            graph[cycle[1]].discard(cycle[0])
        else:
            return graph


def levels(tables: Iterable[Table]) -> list[list[TableName]]:
    """Tables by level: each references only tables of earlier levels."""
    sorter = TopologicalSorter(dependencies(tables))
    sorter.prepare()
    result = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        result.append(ready)
        sorter.done(*ready)
    return result
