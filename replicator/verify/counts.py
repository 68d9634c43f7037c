"""Compare numbers of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from replicator.postgres.connection import Side, query, translated
from replicator.verify.plan import Plan
from replicator.verify.snapshot import Follower, Sessions

_ROUNDS: Final = 10
_STEADY: Final = 2  # rounds in a row in which the source's count did not move and the target's was another


@dataclass(slots=True)
class RowCount:
    """The numbers of rows of one table at one position, once settled."""

    plan: Plan
    source: int = 0
    target: int = 0
    note: str = ""
    steady: int = 0

    def settle(self, before: int, target: int, after: int) -> bool:
        """Take in counts of the source, the target and the source again; whether they tell enough."""
        self.source, self.target = after, target
        if target in (before, after):
            self.source = target
            return True
        self.steady = self.steady + 1 if before == after else 0
        return self.steady >= _STEADY

    def judge(self, before: int) -> None:
        """Decide on a count that kept moving: good if the target's lies within its range."""
        if min(before, self.source) <= self.target <= max(before, self.source):
            self.source = self.target
            self.note = f"{self.plan.name}: the count kept moving; the target's lies within its range"


def count_once(plan: Plan, sessions: Sessions) -> RowCount:
    """Count as both sides are."""
    return RowCount(plan, _count(plan, sessions, "source"), _count(plan, sessions, "target"))


def count_live(plans: Sequence[Plan], sessions: Sessions, follower: Follower) -> list[RowCount]:
    """Count the target between two counts of the source; the tables wait for the stream together."""
    found = [RowCount(plan) for plan in plans]
    moving = found
    before: dict[str, int] = {}
    for _ in range(_ROUNDS):
        before = {each.plan.name: _count(each.plan, sessions, "source") for each in moving}
        follower.wait_for_now()
        moving = [
            each
            for each in moving
            if not each.settle(
                before[each.plan.name],
                _count(each.plan, sessions, "target"),
                _count(each.plan, sessions, "source"),
            )
        ]
        if not moving:
            break
    for each in moving:
        each.judge(before[each.plan.name])
    return found


def _count(plan: Plan, sessions: Sessions, side: Side) -> int:
    with translated(side):
        [(count,)] = query(sessions.get(side), plan.count(side))
    return int(count)
