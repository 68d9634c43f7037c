"""Progress bars on stderr, where that is a terminal; nothing elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from replicator.verify import Progress as TableProgress
    from snapshot.progress import Progress as SnapshotProgress


def _bars() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


@contextmanager
def snapshot_progress() -> Iterator[Callable[[SnapshotProgress], None] | None]:
    """One bar over the rows of all tables; None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    with _bars() as bars:
        task = bars.add_task("copying", total=None)

        def report(progress: SnapshotProgress) -> None:
            done = sum(table.state == "copied" for table in progress.tables)
            bars.update(
                task,
                description=f"copying, {done} of {len(progress.tables)} tables",
                completed=progress.rows_done,
                total=progress.rows_estimated,
            )

        yield report


@contextmanager
def verify_progress() -> Iterator[Callable[[TableProgress], None] | None]:
    """A bar per table that is being compared; None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    tasks: dict[str, TaskID] = {}
    lock = threading.Lock()
    with _bars() as bars:

        def report(progress: TableProgress) -> None:
            with lock:
                if progress.table not in tasks:
                    tasks[progress.table] = bars.add_task(escape(progress.table), total=progress.expected or None)
                task = tasks[progress.table]
                bars.update(task, completed=progress.rows, visible=not progress.done)

        yield report


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A line that moves while somebody else does the work."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(what):
        yield
