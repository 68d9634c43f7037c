"""What tables need once their rows are in: their indexes, and statistics for the planner."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from replicator.errors import ReplicatorError
from replicator.model.schema import Table, TableName
from replicator.target import indexes
from replicator.target.indexes import DeferredIndex
from snapshot.session import Run, session


@dataclass(frozen=True, slots=True)
class BuildTask:
    """Indexes to rebuild one after another."""

    run: Run
    indexes: tuple[DeferredIndex, ...]


@dataclass(frozen=True, slots=True)
class AnalyzeTask:
    """Tables to analyze."""

    run: Run
    tables: tuple[TableName, ...]


def build_indexes(task: BuildTask) -> None:
    """Rebuild them, each in a transaction of its own."""
    try:
        with session(task.run, "target", "index") as conn:
            for index in task.indexes:
                indexes.rebuild(conn, index)
    except ReplicatorError as exc:
        # The driver's error quotes the values that collide, and a process sends its traceback home as text.
        exc.__cause__ = exc.__context__ = None
        raise


def analyze_tables(task: AnalyzeTask) -> None:
    """Gather statistics."""
    with session(task.run, "target", "analyze") as conn:
        indexes.analyze(conn, task.tables)


def build_tasks(run: Run, tables: Collection[Table], missing: list[DeferredIndex]) -> list[BuildTask]:
    """What can be built now: the keys in one task, or when all are there one task per index, to be built side by side.

    A key locks everybody else out of its table: they would wait, and might keep it waiting. All in one also where a
    table is partitioned: two sessions could make up the same name for a partition's index.
    """
    keys = tuple(index for index in missing if index.is_key)
    if keys:
        return [BuildTask(run, keys)]
    whole = any(table.kind == "p" for table in tables)
    groups = [tuple(missing)] if whole else [(index,) for index in missing]
    return [BuildTask(run, group) for group in groups if group]
