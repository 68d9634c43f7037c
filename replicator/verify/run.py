"""The whole verification: snapshots of both sides, tables and foreign keys spread over a few threads, one report."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Final

from replicator.config import Settings
from replicator.errors import ConfigError, Refused
from replicator.model.schema import TableName, show_table
from replicator.postgres.connection import query, translated
from replicator.routing.idmap import IdMaps
from replicator.routing.route import Route
from replicator.target import state
from replicator.verify.counts import count_live, count_once
from replicator.verify.findings import Findings
from replicator.verify.foreign_keys import ForeignKeyCheck, load_checks
from replicator.verify.job import Desk, Halted, Job, Progress
from replicator.verify.plan import Plan, plan_table
from replicator.verify.recheck import settle
from replicator.verify.report import ForeignKeyReport, Report, TableReport
from replicator.verify.snapshot import Sessions, SnapshotPair, read_maps
from replicator.verify.tables import TableComparison, report_count

__all__ = ["Progress", "verify"]

STREAM_TIMEOUT_S: Final = 60.0
_WORKERS: Final = 2  # rows are compared under one interpreter lock: more threads only wait for each other
_STOP_CHECK_S: Final = 0.1
# Encodings whose bytes order as those of UTF-8 do, in which both sides send text.
_UTF8_ORDER: Final = frozenset({"UTF8", "LATIN1", "SQL_ASCII"})


def verify(
    settings: Settings,
    routes: Sequence[Route],
    *,
    tables: Collection[TableName] | None = None,
    counts_only: bool = False,
    fail_fast: bool = False,
    live: bool | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    stream_timeout_s: float = STREAM_TIMEOUT_S,
) -> Report:
    """Compare source and target through the routes, with memory that does not grow with the tables.

    Args:
        tables: target tables to compare; None: those of all routes.
        counts_only: compare numbers of rows alone, and no foreign keys.
        fail_fast: end with the first difference; tables not finished by then are left out.
        live: whether the stream is applying changes meanwhile; None: find out, for each lane. If so, differences are
            looked at again at later positions until it is certain that they are not just changes on their way.
        progress: called from several threads.
        stop: ends the verification with `Refused` when set.
        stream_timeout_s: how long the running stream may take to reach a position of the source.

    Raises:
        ConfigError: a name in ``tables`` is no route's.
        Refused: the snapshot is still being copied, or ``stop`` was set.
        StateError: the stream runs but does not advance.
    """
    chosen = _choose(routes, tables)
    with Sessions(settings) as sessions:
        stop = stop if stop is not None else threading.Event()

        lanes = [lane for lane in settings.split() if any(lane.takes(route.name) for route in chosen)]

        def running() -> frozenset[str]:
            return frozenset(lane.source.slot for lane in lanes if live or (live is None and _runs(sessions, lane)))

        def compare(known: frozenset[str]) -> Report:
            for lane in lanes:
                if lane.source.slot in known:
                    _refuse_unfinished(sessions, lane, chosen)
            job = Job(settings, known, fail_fast, stream_timeout_s, progress, stop)
            return _compare(job, sessions, chosen, counts_only=counts_only)

        known = running()
        report = compare(known)
        if not report.equal and (now := running()) > known:
            # A service was just starting or reconnecting: what it had not applied was taken for differences.
            report = compare(now)
        for lane in lanes:
            _record(sessions, lane, {table.name: table for table in report.tables}, chosen)
        return report


def _compare(job: Job, sessions: Sessions, chosen: Sequence[Route], *, counts_only: bool) -> Report:
    utf8 = _orders_as_utf8(sessions)
    plans = [plan_table(route, utf8=utf8) for route in chosen]
    with SnapshotPair(job.settings, job.follower(sessions)) as pair:
        run = _Run(job, pair, plans)
        if counts_only:
            run.compare_counts()
        else:
            run.compare_rows()
        return run.report()


def _record(sessions: Sessions, lane: Settings, tables: Mapping[str, TableReport], routes: Sequence[Route]) -> None:
    """Leave the numbers where the service finds them for its metrics."""
    target = sessions.get("target")
    with translated("target"):
        if not state.exists(target):
            return
        state.record_differences(
            target,
            lane.source.slot,
            {
                route.name: tables[str(route)].differences
                for route in routes
                if lane.takes(route.name) and str(route) in tables
            },
        )


class _Run:
    """The threads and what they have found. Largest tables first, foreign keys last."""

    def __init__(self, job: Job, pair: SnapshotPair, plans: Sequence[Plan]) -> None:
        self._job = job
        self._pair = pair
        self._plans = plans
        self._maps = IdMaps()
        self._tasks: deque[Plan | ForeignKeyCheck] = deque()
        self._tables: dict[str, TableReport] = {}
        self._unsettled: list[TableComparison] = []
        self._foreign_keys: list[ForeignKeyReport] = []
        self._notes: list[str] = []
        self._sessions: list[Sessions] = []

    def compare_rows(self) -> None:
        """Compare all rows, and check the foreign keys."""
        self._maps = read_maps(self._pair.target, {spec.name for plan in self._plans for spec in plan.route.maps})
        largest_first = sorted(self._plans, key=_bytes_of, reverse=True)
        self._tasks.extend(largest_first)
        self._tasks.extend(load_checks(self._pair.target, {plan.route.target.oid for plan in self._plans}))
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="verify") as pool:
            futures = [pool.submit(self._work) for _ in range(_WORKERS)]
            try:
                while wait(futures, timeout=_STOP_CHECK_S, return_when=FIRST_EXCEPTION).not_done:
                    if self._job.stop.is_set() or any(future.done() and future.exception() for future in futures):
                        break
                self._raise_fault(futures)
            except BaseException:
                # A server that sorts a large table sends no row for a while: do not wait for that.
                self._job.halt.set()
                for sessions in self._sessions:
                    sessions.cancel()
                raise
        self._pair.close()  # settling may take a while, and vacuum waits for snapshots
        with Sessions(self._job.settings) as later:
            self._recheck(self._unsettled, later)
            for comparison in self._unsettled:
                self._finish(comparison, later)

    def compare_counts(self) -> None:
        """Compare the numbers of rows alone."""
        with Sessions(self._job.settings) as sessions:
            follower = self._job.follower(sessions)
            if follower is not None:
                counts = count_live(self._plans, sessions, follower)
            else:
                with self._pair.transaction(sessions):
                    counts = [count_once(plan, sessions) for plan in self._plans]
        for count in counts:
            self._add(*report_count(count, self._job))

    def report(self) -> Report:
        """The report, with tables in the order of the routes."""
        if self._job.halt.is_set():
            self._notes.append("ended with the first difference: the report is not complete")
        return Report(
            self._pair.lsn,
            tuple(self._tables[plan.name] for plan in self._plans if plan.name in self._tables),
            tuple(sorted(self._foreign_keys, key=lambda key: (key.table, key.name))),
            tuple(sorted(self._notes)),
        )

    def _raise_fault(self, futures: Sequence[Future[None]]) -> None:
        for future in futures:
            if future.done():
                future.result()
        if self._job.stop.is_set():
            raise Refused("verification was stopped before its end")

    def _work(self) -> None:
        try:
            with Sessions(self._job.settings) as snapshots, Sessions(self._job.settings) as later:
                self._sessions += (snapshots, later)
                desk = Desk(self._job, self._pair, self._maps, snapshots)
                while self._tasks and not self._job.halt.is_set():
                    try:
                        task = self._tasks.popleft()
                    except IndexError:  # another thread was faster
                        break
                    self._job.raise_if_stopped()
                    if isinstance(task, ForeignKeyCheck):
                        self._check_foreign_key(task, desk, later)
                    else:
                        self._compare_table(TableComparison(task), desk, later)
        except Halted:
            pass
        except BaseException:
            self._job.halt.set()  # one fault ends all
            raise

    def _check_foreign_key(self, check: ForeignKeyCheck, desk: Desk, later: Sessions) -> None:
        with self._pair.transaction(desk.snapshots):
            key = check.run(desk.snapshots.get("target"))
        follower = self._job.follower(later)
        if key.orphans and follower is not None and len(self._job.running) > 1:
            key = check.settle(key, later.get("target"), follower)
        self._foreign_keys.append(key)
        self._halt_if(bool(key.orphans))

    def _compare_table(self, comparison: TableComparison, desk: Desk, later: Sessions) -> None:
        """While the stream runs, suspects are settled at the end: all tables then wait for it together."""
        if self._job.live:
            comparison.read(desk)
            self._unsettled.append(comparison)
            return
        comparison.read(desk, hurry=self._job.fail_fast)
        self._recheck([comparison], later)
        if comparison.must_read_on:
            comparison.read(desk)
            self._recheck([comparison], later)
        self._halt_if(not self._finish(comparison, later).equal)

    def _recheck(self, comparisons: Sequence[TableComparison], later: Sessions) -> None:
        rechecks = [recheck for comparison in comparisons if (recheck := comparison.recheck()) is not None]
        settle(rechecks, later, self._job.follower(later), self._job.raise_if_stopped)

    def _finish(self, comparison: TableComparison, later: Sessions) -> TableReport:
        comparison.settle_keyless(self._job, later)
        report = comparison.report(self._job)
        self._add(report, comparison.findings)
        return report

    def _add(self, table: TableReport, findings: Findings) -> None:
        self._tables[table.name] = table
        self._notes += findings.notes

    def _halt_if(self, differs: bool) -> None:
        if differs and self._job.fail_fast:
            self._job.halt.set()


def _bytes_of(plan: Plan) -> int:
    return plan.route.source.bytes_estimate


def _choose(routes: Sequence[Route], tables: Collection[TableName] | None) -> list[Route]:
    if tables is None:
        return list(routes)
    unknown = set(tables) - {route.name for route in routes}
    if unknown:
        names = ", ".join(sorted(map(show_table, unknown)))
        raise ConfigError(f"not replicated: {names}", hint="`replicator plan` lists the tables")
    return [route for route in routes if route.name in tables]


def _runs(sessions: Sessions, lane: Settings) -> bool:
    with translated("target"):
        return state.writer_is_running(sessions.get("target"), lane.source.slot)


def _refuse_unfinished(sessions: Sessions, lane: Settings, routes: Sequence[Route]) -> None:
    target, slot = sessions.get("target"), lane.source.slot
    with translated("target"):
        checkpoint = state.load_checkpoint(target, slot) if state.exists(target) else None
        states = state.load_table_states(target, slot) if checkpoint is not None else {}
    if checkpoint is None or checkpoint.phase in ("new", "copying"):
        raise Refused(
            f"{lane.prefix}the snapshot is still being copied", hint="`replicator status` shows how far it is"
        )
    unfinished = [
        str(route) for route in routes if (known := states.get(route.name)) is not None and known.state != "copied"
    ]
    if unfinished:
        raise Refused(
            f"still being copied: {', '.join(unfinished)}", hint="wait for `replicator status` to show them as copied"
        )


def _orders_as_utf8(sessions: Sessions) -> bool:
    for side in ("source", "target"):
        with translated(side):
            [(encoding,)] = query(sessions.get(side), "SHOW server_encoding")
        if encoding not in _UTF8_ORDER:
            return False
    return True
