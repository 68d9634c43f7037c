"""The order of the work: largest tables first, or as soon as what they reference is in; then indexes and statistics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any, TypeVar

from replicator.config import Settings
from replicator.errors import RowRejected, TransientError
from replicator.failpoints import failpoint
from replicator.logs import get_logger
from replicator.model.schema import Table, TableName, show_table
from replicator.postgres.connection import Connection, translated
from replicator.routing.order import dependencies
from replicator.routing.record import record_of
from replicator.target import indexes, state
from snapshot.copy import CopyResult, CopyTask, Part, copy_parts, portable
from snapshot.export import ExportedSnapshot
from snapshot.finish import AnalyzeTask, analyze_tables, build_indexes, build_tasks
from snapshot.plan import TableCopy, grouped
from snapshot.pool import Pool
from snapshot.progress import State, Tracker
from snapshot.session import Run

_log = get_logger(__name__)

_TICK_S = 0.5
# Below, maintaining the indexes row by row costs less than dropping and rebuilding them.
_DEFER_ROWS = 10_000
# Tasks begun or handed out, per worker: none has to wait for us.
_AHEAD = 2

Task = TypeVar("Task")
Result = TypeVar("Result")


class Stopped(TransientError):
    """The stop event was set; what is not finished stays to be resumed."""


@dataclass
class _Group:
    """Tables that go the whole way together, and what of it is still out."""

    tables: tuple[Table, ...]
    tasks: int = 0  # of the stage at hand: to copy, or to build indexes
    copied: dict[TableName, tuple[int, int]] = field(default_factory=dict)  # rows and bytes
    started: float = field(default_factory=time.monotonic)

    def add(self, result: CopyResult) -> None:
        rows, size = self.copied.get(result.table, (0, 0))
        self.copied[result.table] = (rows + result.rows, size + result.size)


class Schedule:
    """Copies tables from one exported snapshot; used once."""

    def __init__(
        self, settings: Settings, writer: Connection, pool: Pool, tracker: Tracker, stop: threading.Event,
        *, replica: bool,
    ) -> None:  # fmt: skip
        """``replica``: the target's role may turn off triggers and foreign keys."""
        self._settings = settings
        self._slot = settings.source.slot
        self._run = Run(pool.run, settings.source.dsn, settings.target.dsn, self._slot, pool.ends_with_us)
        self._writer = writer
        self._pool = pool
        self._tracker = tracker
        self._stop = stop
        self._replica = replica
        self._running: dict[Future[Any], Callable[[], None]] = {}
        self._advanced = False  # whether a table, or an index, is done: the next attempt need not do it again

    def copy(
        self,
        copies: Mapping[TableName, TableCopy],
        snapshot: ExportedSnapshot,
        published: Mapping[TableName, int],
        watch: Callable[[], None],
    ) -> None:
        """Copy all of them, then build their indexes and analyze them.

        Args:
            published: by source table, the OID of its entry in the publication.
            watch: called several times a second; what it raises ends the work.

        Raises:
            Stopped: the stop event was set.
            ReplicatorError: the first error of a task; the others were interrupted.
        """
        tables = [copy.route.target for copy in copies.values()]
        # Where no foreign key is checked any order will do, and the largest table must not wait for others.
        graph = dependencies(() if self._replica else tables)
        sorter = TopologicalSorter({name: graph.get(name, ()) for name in copies})
        sorter.prepare()
        waiting: list[tuple[TableCopy, ...]] = []

        def next_step() -> None:
            ready = [copies[name] for name in sorter.get_ready()]
            if ready:
                waiting.extend(grouped(ready, small_rows=_DEFER_ROWS))
                waiting.sort(key=lambda group: -sum(copy.bytes_estimate for copy in group))
            # Not all at once: what has not begun keeps its indexes, and an interruption does not concern it.
            while waiting and len(self._running) < _AHEAD * self._settings.snapshot.workers:
                self._start(waiting.pop(0), snapshot, published, sorter.done)
            watch()

        next_step()
        self._drain(next_step)

    def finish(self, tables: Sequence[Table]) -> None:
        """Build the missing indexes of tables that are already copied, and analyze them."""
        for table in tables:
            self._index(_Group((table,)))
        self._drain(lambda: None)

    def _drain(self, next_step: Callable[[], None]) -> None:
        try:
            with translated("target"):
                self._work_off(next_step)
        except TransientError as exc:
            exc.advanced = self._advanced
            raise

    def _work_off(self, next_step: Callable[[], None]) -> None:
        ticked = 0.0
        while self._running:
            finished, _ = wait(self._running, timeout=_TICK_S, return_when=FIRST_COMPLETED)
            if self._stop.is_set():
                raise Stopped("the snapshot was stopped", hint="start again: it resumes")
            for future in finished:
                self._running.pop(future)()
            next_step()
            if time.monotonic() - ticked >= _TICK_S:
                ticked = time.monotonic()
                self._tracker.poll(self._writer)
            self._tracker.publish()

    def _start(
        self,
        copies: Sequence[TableCopy],
        snapshot: ExportedSnapshot,
        published: Mapping[TableName, int],
        done: Callable[..., None],
    ) -> None:
        group = _Group(tuple(copy.route.target for copy in copies))
        attempts = self._enter_tables(copies, snapshot, published)
        self._note(group, "copying")

        def part_done(results: Sequence[CopyResult]) -> None:
            for result in results:
                group.add(result)
                self._tracker.add(result)
            group.tasks -= 1
            if group.tasks == 0:
                self._finish_tables(group)
                done(*group.copied)
                self._index(group)

        parts = [
            Part(portable(copy.route), number, pages, attempts[copy.name])
            for copy in copies
            for number, pages in enumerate(copy.parts)
        ]
        # Several tables are small ones, of one part each.
        tasks = [tuple(parts)] if len(copies) > 1 else [(part,) for part in parts]
        group.tasks = len(tasks)
        for each in tasks:
            self._submit(copy_parts, CopyTask(self._run, snapshot.name, each, self._replica), part_done)

    def _enter_tables(
        self, copies: Sequence[TableCopy], snapshot: ExportedSnapshot, published: Mapping[TableName, int]
    ) -> dict[TableName, int]:
        """Record that they are being copied, and drop the indexes that are better built later; the attempts."""
        specs = self._settings.map_specs
        entries = [(c.name, record_of(c.route, specs), published[c.route.source.name]) for c in copies]
        with self._writer.transaction():
            attempts = state.start_tables(self._writer, self._slot, snapshot.lsn, entries)
            for copy in copies:
                if self._settings.snapshot.defer_indexes and copy.rows_estimate >= _DEFER_ROWS:
                    failpoint("before_index_drop", self._writer)
                    # Where triggers fire, an ON CONFLICT of theirs may need a key.
                    _, kept = indexes.defer(self._writer, copy.name, self._slot, with_keys=self._replica)
                    if kept:
                        _log.warning("indexes stay while rows are copied: this role may not create them again",
                                     table=str(copy.route), indexes=kept)  # fmt: skip
        failpoint("after_table_entered", self._writer)
        return attempts

    def _finish_tables(self, group: _Group) -> None:
        failpoint("before_table_copied", self._writer)
        state.finish_tables(self._writer, self._slot, group.copied)
        self._advanced = True
        failpoint("after_table_copied", self._writer)
        seconds = round(time.monotonic() - group.started, 1)
        for name, (rows, size) in group.copied.items():
            _log.info("table copied", table=show_table(name), rows=rows, bytes=size, seconds=seconds)

    def _index(self, group: _Group) -> None:
        """Rebuild what is missing, whoever dropped it: an earlier run may have."""
        self._note(group, "indexing")
        names = [table.name for table in group.tables]
        tasks = build_tasks(self._run, group.tables, indexes.pending(self._writer, names))
        group.tasks = len(tasks)

        def built(_: None) -> None:
            self._advanced = True
            group.tasks -= 1
            if group.tasks == 0:
                self._index(group)

        def refused() -> None:
            # Its rows have to come anew from a source that has been mended.
            state.reopen_tables(self._writer, self._slot, names)

        for task in tasks:
            self._submit(build_indexes, task, built, refused)
        if not tasks:
            self._analyze(group)

    def _analyze(self, group: _Group) -> None:
        task = AnalyzeTask(self._run, tuple(table.name for table in group.tables))
        self._submit(analyze_tables, task, lambda _: self._note(group, "copied"))

    def _note(self, group: _Group, state: State) -> None:
        for table in group.tables:
            self._tracker.enter(table.name, state)

    def _submit(
        self,
        function: Callable[[Task], Result],
        task: Task,
        then: Callable[[Result], None],
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        """Run it and go on with ``then``, or with ``refused`` where the target does not take the rows."""
        try:
            future = self._pool.submit(function, task)
        except BrokenExecutor as exc:
            raise _worker_died() from exc

        def finished() -> None:
            try:
                result = future.result()
            except RowRejected:
                refused()
                raise
            except Exception as exc:
                if _tells_of_worker(exc):
                    raise _worker_died() from exc
                raise
            then(result)

        self._running[future] = finished


def _tells_of_worker(exc: Exception) -> bool:
    """Whether it is about who ran the task, not about what the task did."""
    return isinstance(exc, BrokenExecutor | CancelledError) or type(exc).__module__.startswith("distributed.")


def _worker_died() -> TransientError:
    return TransientError("a copying process ended unexpectedly; was it killed, or out of memory?")
