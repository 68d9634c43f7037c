"""Compare a table without a key: rows are told apart by their digest alone, and counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from replicator.verify.buckets import Group, Identity, compare_buckets, find_groups, unseen_buckets
from replicator.verify.findings import Findings
from replicator.verify.job import Desk
from replicator.verify.merge import Counts
from replicator.verify.plan import Plan
from replicator.verify.rows import open_streams
from replicator.verify.snapshot import SnapshotPair, read_maps

_LOOKS: Final = 6  # while the stream runs


@dataclass(frozen=True, slots=True)
class _Look:
    """The rows whose numbers differ, by digest; ``unseen``: buckets that there was no room to look into."""

    groups: dict[Identity, Group]
    unseen: int


def compare_keyless(plan: Plan, desk: Desk, counts: Counts, findings: Findings) -> None:
    """Count the rows that one side has more of.

    While the stream runs, a difference is certain if the source has the same number of such rows at two looks, with the
    target's different in both. If that number moves, it is judged by the target's: where that moves too, the stream
    brings such rows, and they are left out with a note.
    """
    first = last = _look_in(plan, desk, desk.pair, counts)
    moving: set[Identity] = set()
    looks = 1
    while desk.job.live and (last.groups or last.unseen) and looks < _LOOKS:
        before, last = last, _look_again(plan, desk)
        both = {each: group for each, group in last.groups.items() if each in before.groups}
        last = _Look(both, min(before.unseen, last.unseen))
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


def _look_again(plan: Plan, desk: Desk) -> _Look:
    with SnapshotPair(desk.job.settings, desk.job.follower(desk.later)) as pair:
        return _look_in(plan, desk, pair, Counts())


def _look_in(plan: Plan, desk: Desk, pair: SnapshotPair, counts: Counts) -> _Look:
    tick = desk.job.ticker(plan)
    groups: dict[Identity, Group] = {}
    with pair.transaction(desk.snapshots):
        maps = read_maps(desk.snapshots.get("target"), {spec.name for spec in plan.route.maps})
        streams = open_streams(plan, desk.snapshots, maps)
        buckets = compare_buckets(plan, streams, counts, tick)
        for found in find_groups(plan, streams, buckets, counts, tick):
            groups |= found
    return _Look(groups, unseen_buckets(buckets, counts))
