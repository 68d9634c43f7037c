"""Compare a table without a key: rows are told apart by their digest alone, and counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from replicator.verify.buckets import Group, Identity, compare_buckets, find_groups, unseen_buckets
from replicator.verify.findings import Findings
from replicator.verify.job import Job
from replicator.verify.merge import Counts
from replicator.verify.plan import Plan
from replicator.verify.rows import open_streams
from replicator.verify.snapshot import Sessions, SnapshotPair, read_maps

_LOOKS: Final = 6  # while the stream runs


@dataclass(frozen=True, slots=True)
class KeylessLook:
    """The rows whose numbers differ, by digest; ``unseen``: buckets that there was no room to look into."""

    groups: dict[Identity, Group]
    unseen: int

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.groups and not self.unseen


def look_at_keyless(plan: Plan, job: Job, pair: SnapshotPair, snapshots: Sessions, counts: Counts) -> KeylessLook:
    """Compare all rows inside the two snapshots."""
    tick = job.ticker(plan)
    groups: dict[Identity, Group] = {}
    with pair.transaction(snapshots):
        maps = read_maps(snapshots.get("target"), {spec.name for spec in plan.route.maps})
        streams = open_streams(plan, snapshots, maps)
        buckets = compare_buckets(plan, streams, counts, tick)
        for found in find_groups(plan, streams, buckets, counts, tick):
            groups |= found
    return KeylessLook(groups, unseen_buckets(buckets, counts))


def settle_keyless(plan: Plan, job: Job, first: KeylessLook, later: Sessions, findings: Findings) -> None:
    """Count the rows that one side has more of.

    While the stream runs, a difference is certain if the source has the same number of such rows at two looks, with the
    target's different in both. If that number moves, it is judged by the target's: where that moves too, the stream
    brings such rows, and they are left out with a note.
    """
    last = first
    moving: set[Identity] = set()
    looks = 1
    while job.live and not last.equal and looks < _LOOKS:
        before, again = last, _look_again(plan, job, later)
        both = {each: group for each, group in again.groups.items() if each in before.groups}
        last = KeylessLook(both, min(before.unseen, again.unseen))
        moving = {each for each, group in both.items() if group.source != before.groups[each].source}
        looks += 1
        if not moving:
            break
    restless = {each for each in moving if last.groups[each].target != first.groups[each].target}
    for each, group in last.groups.items():
        if each not in restless:
            findings.missing += max(0, group.source - group.target)
            findings.extra += max(0, group.target - group.source)
    if restless:
        findings.note(f"{plan.name}: {len(restless)} rows came and went too often to be counted")
    findings.different += last.unseen
    note_unseen(plan, last.unseen, findings)


def note_unseen(plan: Plan, unseen: int, findings: Findings) -> None:
    """Say so where differences are more than could be looked into."""
    if unseen:
        findings.note(f"{plan.name}: too many differences to count; there are at least so many")


def _look_again(plan: Plan, job: Job, later: Sessions) -> KeylessLook:
    with (
        SnapshotPair(job.settings, job.follower(later)) as pair,
        Sessions(job.settings) as snapshots,
    ):
        return look_at_keyless(plan, job, pair, snapshots, Counts())
