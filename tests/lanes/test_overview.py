"""The status of several lanes as one."""

from __future__ import annotations

import pytest

from replicator.model.lsn import Lsn
from replicator.overview import combine
from replicator.status import SlotStatus, Status, TableStatus


def slot(name="s", **values):
    known = {
        "active": True,
        "wal_status": "reserved",
        "retained_bytes": 10,
        "safe_bytes": None,
        "seconds_until_lost": None,
    }
    return SlotStatus(name, **{**known, **values})


def lane(**values):
    known = {"phase": "streaming", "applied_lsn": Lsn(100), "source_lsn": Lsn(200), "lag_bytes": 100,
             "lag_seconds": 1.0, "slot": slot()}  # fmt: skip
    return Status(**{**known, **values})


def table(name):
    return TableStatus(name, "copied", 1, 0, None)


def test_as_far_as_the_lane_that_is_furthest_behind():
    first = lane(phase="catching_up", applied_lsn=Lsn(50), lag_bytes=150, tables=(table("b"),), unmapped_ids=3)
    second = lane(lag_seconds=9.0, source_lsn=Lsn(210), tables=(table("a"),), quarantined_rows=2, unmapped_ids=3)
    one = combine({1: first, 2: second})
    assert (one.phase, one.applied_lsn, one.source_lsn) == ("catching_up", Lsn(50), Lsn(210))
    assert (one.lag_bytes, one.lag_seconds) == (150, 9.0)
    assert [each.name for each in one.tables] == ["a", "b"]
    assert (one.unmapped_ids, one.quarantined_rows) == (3, 2)
    told = one.to_json()["lanes"]
    assert [(each["lane"], each["phase"], each["lag_seconds"]) for each in told] == [
        (1, "catching_up", 1.0), (2, "streaming", 9.0)]  # fmt: skip


@pytest.mark.parametrize(
    "worse",
    [{"wal_status": "lost"}, {"wal_status": "unreserved"}, {"active": False}, {"seconds_until_lost": 60.0},
     {"retained_bytes": 11}],
)  # fmt: skip
def test_the_slot_is_the_one_nearest_to_its_end(worse):
    for order in ((1, 2), (2, 1)):
        lanes = dict(zip(order, (lane(slot=slot("worse", **worse)), lane(slot=slot("better"))), strict=True))
        assert combine(lanes).slot.name == "worse"


def test_a_slot_that_is_gone_is_worse_than_any_other():
    assert combine({1: lane(), 2: lane(slot=None)}).slot is None
    assert combine({1: lane(), 2: Status()}).slot == slot(), "one that was never made is not gone"


def test_what_is_not_known_of_one_lane_is_not_known():
    one = combine({1: lane(), 2: lane(applied_lsn=None, lag_bytes=None)})
    assert (one.applied_lsn, one.lag_bytes) == (None, None)


def test_problems_name_their_lane_and_common_ones_come_once():
    one = combine(
        {1: lane(problems=("the source is away",)), 2: lane(problems=("the source is away", "slow"), problem="x")}
    )
    assert one.problems == ("the source is away", "lane 2: slow")
    assert one.problem == "lane 2: x"
    assert not one.healthy


def test_a_lane_that_was_never_started_is_a_problem_where_others_run():
    lanes = {1: lane(), 2: Status()}
    assert combine(lanes).phase == "new"
    assert combine(lanes, idle=lambda number: f"not begun: start {number}").problems == ("lane 2: not begun: start 2",)
