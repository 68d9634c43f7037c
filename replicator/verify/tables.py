"""Compare one table: pick the method, follow up on what differs, report."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from replicator import metrics
from replicator.config import Settings
from replicator.errors import Refused
from replicator.postgres.connection import query, translated
from replicator.routing.idmap import IdMaps
from replicator.verify.buckets import Identity, Streams, compare_buckets, find_groups, unseen_buckets
from replicator.verify.merge import Counts, Suspect, Tick, merge
from replicator.verify.plan import Plan
from replicator.verify.recheck import CHUNK_KEYS, Findings, Rechecker
from replicator.verify.report import TableReport
from replicator.verify.rows import Router, stream_rows
from replicator.verify.snapshot import Follower, Sessions, SnapshotPair, current_lsn, read_maps

_LOOKS: Final = 3  # at a table without a key, while the stream runs
_COUNT_ROUNDS: Final = 10
_PROGRESS_S: Final = 0.1
_KEPT_SUSPECTS: Final = 50_000  # until their table is read; some 15 MB


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the comparison of one table is. ``expected``: rows by the source's statistics, 0 if unknown."""

    table: str
    rows: int
    expected: int
    done: bool


class Halted(Exception):
    """The comparison was given up since its result is not needed any more."""


@dataclass(frozen=True, slots=True)
class Job:
    """What all tables of a verification share."""

    settings: Settings
    live: bool
    fail_fast: bool
    stream_timeout_s: float
    progress: Callable[[Progress], None] | None
    stop: threading.Event
    halt: threading.Event

    def ticker(self, plan: Plan) -> Tick:
        """Called every few thousand rows: stops when asked to, and reports progress now and then."""
        last = time.monotonic()

        def tick(rows: int) -> None:
            nonlocal last
            if self.stop.is_set():
                raise Refused("verification was stopped before its end")
            if self.halt.is_set():
                raise Halted
            now = time.monotonic()
            if rows and now - last >= _PROGRESS_S:
                last = now
                self.report_progress(plan, rows, done=False)

        return tick

    def report_progress(self, plan: Plan, rows: int, *, done: bool) -> None:
        """Tell the caller."""
        if self.progress is not None:
            self.progress(Progress(plan.name, rows, plan.route.source.rows_estimate, done))

    def follower(self, sessions: Sessions) -> Follower | None:
        """What waits for the stream, if it runs."""
        return Follower(sessions, timeout_s=self.stream_timeout_s, stop=self.stop) if self.live else None


class TableComparison:
    """One table's comparison. ``snapshots``: sessions in the two snapshots; ``later``: ones that see the present."""

    def __init__(self, job: Job, plan: Plan, maps: IdMaps, snapshots: Sessions, later: Sessions) -> None:
        self._job = job
        self._plan = plan
        self._maps = maps
        self._snapshots = snapshots
        self._later = later
        self._counts = Counts()
        self.findings = Findings()

    def rows(self) -> TableReport:
        """Compare row by row."""
        tick = self._job.ticker(self._plan)
        if self._plan.ordered:
            self._recheck(merge(self._plan, *self._streams(self._snapshots, self._maps), self._counts, tick))
        elif self._plan.key.columns:
            self._recheck(self._unordered_suspects(tick))
        else:
            self._compare_keyless(tick)
        found, counts = self.findings, self._counts
        target_rows = counts.source - found.missing + found.extra if self._job.live else counts.target
        return self._report(counts.source, target_rows)

    def count(self) -> TableReport:
        """Compare the numbers of rows."""
        source, target = self._count_live() if self._job.live else self._count_once(self._snapshots)
        self.findings.missing = max(0, source - target)
        self.findings.extra = max(0, target - source)
        return self._report(source, target)

    def _report(self, source_rows: int, target_rows: int) -> TableReport:
        found = self.findings
        report = TableReport(
            self._plan.name, source_rows, target_rows, found.missing, found.extra, found.different, tuple(found.keys)
        )
        metrics.VERIFY_DIFFERENCES.labels(table=report.name).set(report.differences)
        self._job.report_progress(self._plan, source_rows, done=True)
        return report

    def _streams(self, sessions: Sessions, maps: IdMaps) -> tuple[Iterator[bytes], Iterator[bytes]]:
        source = stream_rows(sessions.get("source"), "source", self._plan)
        target = stream_rows(sessions.get("target"), "target", self._plan)
        return Router(self._plan, maps).rows(source), target

    def _recheck(self, suspects: Iterable[Suspect]) -> None:
        rechecker = Rechecker(self._plan, self._later, self._job.follower(self._later), self.findings, self._job.stop)
        kept: list[Suspect] = []
        self._snapshots.begin_reading()
        for suspect in suspects:
            kept.append(suspect)
            if len(kept) >= _KEPT_SUSPECTS:
                if self._check(rechecker, kept):
                    return
                kept = []
        # Looking again waits for the stream, and the stream may wait for our locks.
        self._snapshots.end_reading()
        self._check(rechecker, kept)

    def _check(self, rechecker: Rechecker, suspects: Sequence[Suspect]) -> bool:
        """Settle suspects; whether enough is known."""
        for start in range(0, len(suspects), CHUNK_KEYS):
            rechecker.check(suspects[start : start + CHUNK_KEYS])
            if self._job.fail_fast and self.findings.total:
                return True
        return False

    def _unordered_suspects(self, tick: Tick) -> Iterator[Suspect]:
        def streams() -> tuple[Iterator[bytes], Iterator[bytes]]:
            return self._streams(self._snapshots, self._maps)

        buckets = compare_buckets(self._plan, streams, self._counts, tick)
        for groups in find_groups(self._plan, streams, buckets, self._counts, tick):
            for key, group in groups.items():
                assert isinstance(key, tuple)
                yield Suspect(key, bool(group.source), bool(group.target))
        unseen = unseen_buckets(buckets, self._counts)
        self.findings.different += unseen
        self._note_unseen(unseen)

    def _compare_keyless(self, tick: Tick) -> None:
        """While the stream runs, a difference counts if it is there at every one of several positions."""
        self._snapshots.begin_reading()
        excess, unseen = self._keyless_excess(self._snapshots, self._maps, self._counts, tick)
        self._snapshots.end_reading()
        looks = 1
        while self._job.live and looks < _LOOKS and (excess or unseen):
            with SnapshotPair(self._job.settings, self._job.follower(self._later)) as pair, pair.sessions() as sessions:
                maps = read_maps(sessions.get("target"), {spec.name for spec in self._plan.route.maps})
                again, unseen_again = self._keyless_excess(sessions, maps, Counts(), tick)
            excess = {row: _smaller(count, again[row]) for row, count in excess.items() if row in again}
            unseen = min(unseen, unseen_again)
            looks += 1
        self.findings.missing += sum(count for count in excess.values() if count > 0)
        self.findings.extra -= sum(count for count in excess.values() if count < 0)
        self.findings.different += unseen
        self._note_unseen(unseen)

    def _keyless_excess(
        self, sessions: Sessions, maps: IdMaps, counts: Counts, tick: Tick
    ) -> tuple[dict[Identity, int], int]:
        """By digest, how many rows more the source has; and how many buckets were not looked into."""
        streams: Streams = lambda: self._streams(sessions, maps)  # noqa: E731 - the alias states its type
        buckets = compare_buckets(self._plan, streams, counts, tick)
        excess: dict[Identity, int] = {}
        for groups in find_groups(self._plan, streams, buckets, counts, tick):
            excess |= {row: group.source - group.target for row, group in groups.items()}
        return excess, unseen_buckets(buckets, counts)

    def _note_unseen(self, unseen: int) -> None:
        if unseen:
            self.findings.notes.append(f"{self._plan.name}: too many differences to count; there are at least so many")

    def _count_once(self, sessions: Sessions) -> tuple[int, int]:
        with translated("source"):
            [(source,)] = query(sessions.get("source"), self._plan.count("source"))
        with translated("target"):
            [(target,)] = query(sessions.get("target"), self._plan.count("target"))
        return source, target

    def _count_live(self) -> tuple[int, int]:
        """Counts of one position: the target's, between two of the source's that agree or that it lies between."""
        follower = self._job.follower(self._later)
        assert follower is not None
        steady = 0
        for _ in range(_COUNT_ROUNDS):
            with translated("source"):
                [(before,)] = query(self._later.get("source"), self._plan.count("source"))
            follower.wait_for(current_lsn(self._later.get("source")))
            after, target = self._count_after()
            if target in (before, after):
                return target, target
            steady = steady + 1 if before == after else 0
            if steady >= 2:
                return after, target
        if min(before, after) <= target <= max(before, after):
            self.findings.notes.append(f"{self._plan.name}: the count kept moving; the target's lies within its range")
            return target, target
        return after, target

    def _count_after(self) -> tuple[int, int]:
        with translated("target"):
            [(target,)] = query(self._later.get("target"), self._plan.count("target"))
        with translated("source"):
            [(after,)] = query(self._later.get("source"), self._plan.count("source"))
        return after, target


def _smaller(one: int, other: int) -> int:
    """What two excesses have in common: 0 if they are of different sides."""
    if (one > 0) != (other > 0):
        return 0
    return min(one, other, key=abs)
