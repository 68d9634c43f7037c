"""The order of the work: tables as soon as what they reference is in, largest first; then indexes and statistics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any, TypeVar

from replicator.config import Settings
from replicator.errors import TransientError
from replicator.failpoints import failpoint
from replicator.logs import get_logger
from replicator.model.schema import Table, TableName
from replicator.postgres.connection import Connection, translated
from replicator.routing.order import dependencies
from replicator.routing.record import record_of
from replicator.target import indexes, state
from snapshot.copy import CopyResult, CopyTask, copy_part, portable
from snapshot.export import ExportedSnapshot
from snapshot.finish import AnalyzeTask, analyze_table, build_indexes, build_tasks
from snapshot.plan import TableCopy
from snapshot.pool import Pool
from snapshot.progress import Tracker

_log = get_logger(__name__)

_TICK_S = 0.5
# Below, maintaining the indexes row by row costs less than dropping and rebuilding them.
_DEFER_ROWS = 10_000

Task = TypeVar("Task")
Result = TypeVar("Result")


class Stopped(TransientError):
    """The stop event was set; what is not finished stays to be resumed."""


@dataclass
class _Tally:
    """What of a table is still out."""

    parts: int = 0
    builds: int = 0
    rows: int = 0
    size: int = 0
    started: float = 0.0


class Schedule:
    """Copies tables from one exported snapshot; used once."""

    def __init__(
        self, settings: Settings, writer: Connection, pool: Pool, tracker: Tracker, stop: threading.Event,
        *, replica: bool,
    ) -> None:  # fmt: skip
        """``replica``: the target's role may turn off triggers and foreign keys."""
        self._settings = settings
        self._slot = settings.source.slot
        self._writer = writer
        self._pool = pool
        self._tracker = tracker
        self._stop = stop
        self._replica = replica
        self._running: dict[Future[Any], Callable[[], None]] = {}
        self._tallies: dict[TableName, _Tally] = {}
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
        sorter = TopologicalSorter(dependencies([copy.route.target for copy in copies.values()]))
        sorter.prepare()

        def start_ready() -> None:
            ready = [copies[name] for name in sorter.get_ready()]
            for each in sorted(ready, key=lambda copy: -copy.bytes_estimate):
                self._start(each, snapshot, published[each.route.source.name], lambda name: sorter.done(name))

        def next_step() -> None:
            start_ready()
            watch()

        start_ready()
        self._drain(next_step)

    def finish(self, tables: Sequence[Table]) -> None:
        """Build the missing indexes of tables that are already copied, and analyze them."""
        for table in tables:
            self._tallies[table.name] = _Tally(started=time.monotonic())
            self._index(table)
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
        self, copy: TableCopy, snapshot: ExportedSnapshot, published: int, done: Callable[[TableName], None]
    ) -> None:
        route = copy.route
        self._tallies[copy.name] = tally = _Tally(parts=len(copy.parts), started=time.monotonic())
        with self._writer.transaction():
            attempt = state.start_table(
                self._writer, self._slot, copy.name, snapshot.lsn, record_of(route, self._settings.map_specs), published
            )
            if self._settings.snapshot.defer_indexes and copy.rows_estimate >= _DEFER_ROWS:
                failpoint("before_index_drop", self._writer)
                _, kept = indexes.defer(self._writer, copy.name, self._slot)
                if kept:
                    _log.warning("indexes stay while rows are copied: this role may not create them again",
                                 table=str(route), indexes=kept)  # fmt: skip
        failpoint("after_table_entered", self._writer)
        self._tracker.enter(copy.name, "copying")

        def part_done(result: CopyResult) -> None:
            tally.parts -= 1
            tally.rows += result.rows
            tally.size += result.size
            self._tracker.add(result)
            if tally.parts == 0:
                failpoint("before_table_copied", self._writer)
                state.finish_table(self._writer, self._slot, copy.name, tally.rows, tally.size)
                self._advanced = True
                failpoint("after_table_copied", self._writer)
                _log.info("table copied", table=str(route), rows=tally.rows, bytes=tally.size,
                          seconds=round(time.monotonic() - tally.started, 1))  # fmt: skip
                done(copy.name)
                self._index(route.target)

        plain = portable(route)
        for part, pages in enumerate(copy.parts):
            task = CopyTask(
                run=self._pool.run,
                source_dsn=self._settings.source.dsn,
                target_dsn=self._settings.target.dsn,
                slot=self._slot,
                snapshot_name=snapshot.name,
                route=plain,
                part=part,
                pages=pages,
                attempt=attempt,
                replica=self._replica,
            )
            self._submit(copy_part, task, part_done)

    def _index(self, table: Table) -> None:
        """Rebuild what is missing, whoever dropped it: an earlier run may have."""
        self._tracker.enter(table.name, "indexing")
        tally = self._tallies[table.name]
        missing = indexes.pending(self._writer, table.name)
        tasks = build_tasks(self._pool.run, self._settings.target.dsn, self._slot, table.kind, missing)
        tally.builds = len(tasks)

        def built(_: None) -> None:
            self._advanced = True
            tally.builds -= 1
            if tally.builds == 0:
                self._analyze(table)

        for task in tasks:
            self._submit(build_indexes, task, built)
        if not tasks:
            self._analyze(table)

    def _analyze(self, table: Table) -> None:
        def analyzed(_: None) -> None:
            self._tracker.enter(table.name, "copied")

        task = AnalyzeTask(self._pool.run, self._settings.target.dsn, self._slot, table.name)
        self._submit(analyze_table, task, analyzed)

    def _submit(self, function: Callable[[Task], Result], task: Task, then: Callable[[Result], None]) -> None:
        try:
            future = self._pool.submit(function, task)
        except BrokenExecutor as exc:
            raise _worker_died() from exc

        def finished() -> None:
            try:
                result = future.result()
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
