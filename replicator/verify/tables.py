"""Compare one table: pick the method, follow up on what differs, report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from replicator import metrics
from replicator.verify.buckets import compare_buckets, find_groups, unseen_buckets
from replicator.verify.counts import count_rows
from replicator.verify.findings import Findings
from replicator.verify.job import Desk
from replicator.verify.keyless import compare_keyless, note_unseen
from replicator.verify.merge import Counts, Suspect, merge
from replicator.verify.plan import Plan
from replicator.verify.recheck import Rechecker
from replicator.verify.report import TableReport
from replicator.verify.rows import open_streams

# Kept until the table has been read; some 30 MB. Beyond, differences are counted as they are first seen.
MAX_SUSPECTS: Final = 100_000
_ENOUGH: Final = 1000  # suspects after which a comparison that ends with the first difference looks at them


def compare_table(plan: Plan, desk: Desk, *, counts_only: bool) -> tuple[TableReport, Findings]:
    """Compare one table, and publish the number of differences."""
    findings, counts = Findings(), Counts()
    if counts_only:
        source_rows, target_rows = count_rows(plan, desk, findings)
    else:
        if plan.key.columns:
            _compare_keyed(plan, desk, counts, findings)
        else:
            compare_keyless(plan, desk, counts, findings)
        source_rows, target_rows = counts.source, counts.target
        if desk.job.live:
            target_rows = source_rows - findings.missing + findings.extra
    report = TableReport(
        plan.name,
        source_rows,
        target_rows,
        findings.missing,
        findings.extra,
        findings.different,
        tuple(findings.keys),
    )
    metrics.VERIFY_DIFFERENCES.labels(table=report.name).set(report.differences)
    desk.job.report_progress(plan, source_rows, done=True)
    return report, findings


def _compare_keyed(plan: Plan, desk: Desk, counts: Counts, findings: Findings) -> None:
    """First read the whole table, then look at the suspects again.

    Not both at once: a TRUNCATE that waits for our reading session would make the other one wait for ever.
    """
    job = desk.job
    suspects = _gather(plan, desk, counts, findings, _ENOUGH if job.fail_fast else None)
    rechecker = Rechecker(plan, desk.later, job.follower(desk.later), findings, job.raise_if_stopped)
    rechecker.check(suspects)
    if job.fail_fast and len(suspects) >= _ENOUGH and not findings.total:
        # All of these were on their way, so the rest of the table has to be read after all.
        counts.source = counts.target = 0
        rechecker.check(_gather(plan, desk, counts, findings, None))


def _gather(plan: Plan, desk: Desk, counts: Counts, findings: Findings, enough: int | None) -> list[Suspect]:
    suspects: list[Suspect] = []
    with desk.pair.transaction(desk.snapshots):
        for suspect in _find_suspects(plan, desk, counts, findings):
            if len(suspects) < MAX_SUSPECTS:
                suspects.append(suspect)
            else:
                findings.add_suspect(suspect)
                findings.note(f"{plan.name}: beyond {MAX_SUSPECTS:,} differences the counts are of the first look")
            if len(suspects) == enough:
                break
    return suspects


def _find_suspects(plan: Plan, desk: Desk, counts: Counts, findings: Findings) -> Iterator[Suspect]:
    tick = desk.job.ticker(plan)
    streams = open_streams(plan, desk.snapshots, desk.maps)
    if plan.ordered:
        yield from merge(plan, *streams(), counts, tick)
        return
    buckets = compare_buckets(plan, streams, counts, tick)
    for groups in find_groups(plan, streams, buckets, counts, tick):
        for key, group in groups.items():
            assert isinstance(key, tuple)
            yield Suspect(key, bool(group.source), bool(group.target))
    unseen = unseen_buckets(buckets, counts)
    findings.different += unseen
    note_unseen(plan, unseen, findings)
