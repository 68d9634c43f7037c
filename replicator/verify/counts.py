"""Compare numbers of rows."""

from __future__ import annotations

from typing import Final

from replicator.postgres.connection import Side, query, translated
from replicator.verify.findings import Findings
from replicator.verify.job import Desk
from replicator.verify.plan import Plan
from replicator.verify.snapshot import Follower, Sessions

_ROUNDS: Final = 10
_STEADY: Final = 2  # rounds in a row in which the source's count did not move and the target's was another


def count_rows(plan: Plan, desk: Desk, findings: Findings) -> tuple[int, int]:
    """Rows of the source and of the target, at one position."""
    follower = desk.job.follower(desk.later)
    if follower is not None:
        source, target = _count_live(plan, desk.later, follower, findings)
    else:
        with desk.pair.transaction(desk.snapshots):
            source, target = _count(plan, desk.snapshots, "source"), _count(plan, desk.snapshots, "target")
    findings.missing = max(0, source - target)
    findings.extra = max(0, target - source)
    return source, target


def _count_live(plan: Plan, sessions: Sessions, follower: Follower, findings: Findings) -> tuple[int, int]:
    """The target's count, between two of the source's: equal to one of them, or between them to the last."""
    steady = 0
    for _ in range(_ROUNDS):
        before = _count(plan, sessions, "source")
        follower.wait_for_now()
        target = _count(plan, sessions, "target")
        after = _count(plan, sessions, "source")
        if target in (before, after):
            return target, target
        steady = steady + 1 if before == after else 0
        if steady >= _STEADY:
            return after, target
    if min(before, after) <= target <= max(before, after):
        findings.note(f"{plan.name}: the count kept moving; the target's lies within its range")
        return target, target
    return after, target


def _count(plan: Plan, sessions: Sessions, side: Side) -> int:
    with translated(side):
        [(count,)] = query(sessions.get(side), plan.count(side))
    return int(count)
