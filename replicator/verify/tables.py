"""Compare one table: first read all of it, then look at the suspects again.

Not both at once: a TRUNCATE that waits for the session that reads would make the other one wait for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from replicator import metrics
from replicator.verify.buckets import compare_buckets, find_groups, unseen_buckets
from replicator.verify.counts import RowCount
from replicator.verify.findings import Findings
from replicator.verify.job import Desk, Job
from replicator.verify.keyless import KeylessLook, look_at_keyless, note_unseen, settle_keyless
from replicator.verify.merge import Counts, Suspect, merge
from replicator.verify.plan import Plan
from replicator.verify.recheck import Recheck
from replicator.verify.report import TableReport
from replicator.verify.rows import open_streams
from replicator.verify.snapshot import Sessions

_ENOUGH: Final = 1000  # suspects after which a comparison that ends with the first difference looks at them


class TableComparison:
    """One table's comparison: `read`, then settle (`recheck` or `settle_keyless`), then `report`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.findings = Findings()
        self._counts = Counts()
        self._suspects: list[Suspect] = []
        self._keyless: KeylessLook | None = None
        self._incomplete = False

    def read(self, desk: Desk, *, hurry: bool = False) -> None:
        """Read the whole table on both sides. ``hurry``: only as far as there is enough to look at."""
        self._counts = Counts()
        if not self.plan.key.columns:
            self._keyless = look_at_keyless(self.plan, desk.job, desk.pair, desk.snapshots, self._counts)
            return
        with desk.pair.transaction(desk.snapshots):
            for suspect in self._find_suspects(desk):
                self._take(suspect, desk.job)
                if hurry and len(self._suspects) >= _ENOUGH:
                    self._incomplete = True
                    break

    def recheck(self) -> Recheck | None:
        """The suspects as a recheck; None if there are none to look at."""
        suspects, self._suspects = self._suspects, []
        return Recheck(self.plan, suspects, self.findings) if suspects else None

    def settle_keyless(self, job: Job, later: Sessions) -> None:
        """Count what differs in a table without a key."""
        if self._keyless is not None:
            settle_keyless(self.plan, job, self._keyless, later, self.findings)

    @property
    def must_read_on(self) -> bool:
        """Whether reading was cut short by suspects all of which turned out to be equal."""
        return self._incomplete and not self.findings.total

    def report(self, job: Job) -> TableReport:
        """The result, published."""
        found = self.findings
        target_rows = self._counts.source - found.missing + found.extra if job.live else self._counts.target
        return publish(self.plan, self._counts.source, target_rows, found, job)

    def _take(self, suspect: Suspect, job: Job) -> None:
        if job.room.take():
            self._suspects.append(suspect)
        else:
            self.findings.add_suspect(suspect)
            self.findings.note(f"{self.plan.name}: so many differences that the rest is counted as it was first seen")

    def _find_suspects(self, desk: Desk) -> Iterator[Suspect]:
        plan, tick = self.plan, desk.job.ticker(self.plan)
        streams = open_streams(plan, desk.snapshots, desk.maps)
        if plan.ordered:
            yield from merge(plan, *streams(), self._counts, tick)
            return
        buckets = compare_buckets(plan, streams, self._counts, tick)
        for groups in find_groups(plan, streams, buckets, self._counts, tick):
            for key, group in groups.items():
                assert isinstance(key, tuple)
                yield Suspect(key, bool(group.source), bool(group.target))
        unseen = unseen_buckets(buckets, self._counts)
        self.findings.different += unseen
        note_unseen(plan, unseen, self.findings)


def report_count(count: RowCount, job: Job) -> tuple[TableReport, Findings]:
    """The result of comparing numbers of rows, published."""
    found = Findings(missing=max(0, count.source - count.target), extra=max(0, count.target - count.source))
    if count.note:
        found.note(count.note)
    return publish(count.plan, count.source, count.target, found, job), found


def publish(plan: Plan, source_rows: int, target_rows: int, found: Findings, job: Job) -> TableReport:
    """A table's report; its differences become a metric."""
    report = TableReport(
        plan.name, source_rows, target_rows, found.missing, found.extra, found.different, tuple(found.keys)
    )
    metrics.VERIFY_DIFFERENCES.labels(table=report.name).set(report.differences)
    job.report_progress(plan, source_rows, done=True)
    return report
