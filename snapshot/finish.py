"""What a table needs once its rows are in: its indexes, and statistics for the planner."""

from __future__ import annotations

from dataclasses import dataclass, field

from replicator.errors import ReplicatorError
from replicator.model.schema import TableName
from replicator.target import indexes
from replicator.target.indexes import DeferredIndex
from snapshot.session import session


@dataclass(frozen=True, slots=True)
class BuildTask:
    """Indexes to rebuild one after another."""

    run: str
    target_dsn: str = field(repr=False)
    slot: str
    indexes: tuple[DeferredIndex, ...]


@dataclass(frozen=True, slots=True)
class AnalyzeTask:
    """A table to analyze."""

    run: str
    target_dsn: str = field(repr=False)
    slot: str
    table: TableName


def build_indexes(task: BuildTask) -> None:
    """Rebuild them, each in a transaction of its own."""
    try:
        with session(task.run, task.target_dsn, "target", f"index {task.slot}") as conn:
            for index in task.indexes:
                indexes.rebuild(conn, index)
    except ReplicatorError as exc:
        # The driver's error quotes the values that collide, and a process sends its traceback home as text.
        exc.__cause__ = exc.__context__ = None
        raise


def analyze_table(task: AnalyzeTask) -> None:
    """Gather statistics."""
    with session(task.run, task.target_dsn, "target", f"analyze {task.slot}") as conn:
        indexes.analyze(conn, task.table)


def build_tasks(run: str, target_dsn: str, slot: str, kind: str, missing: list[DeferredIndex]) -> list[BuildTask]:
    """One task per index, to be built side by side; all in one for a partitioned table.

    There, two sessions could make up the same name for a partition's index.
    """
    groups = [tuple(missing)] if kind == "p" else [(index,) for index in missing]
    return [BuildTask(run, target_dsn, slot, group) for group in groups if group]
