"""The forecast of the slot's end: readings in, seconds out."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from replicator.model.lsn import Lsn
from replicator.source.forecast import Forecast
from replicator.source.slot import SlotInfo

MB = 1 << 20
SLOT = SlotInfo(
    name="s", plugin="pgoutput", database="d", active=True, active_pid=1, wal_status="reserved",
    confirmed_flush_lsn=None, restart_lsn=Lsn(0), retained_bytes=0, safe_bytes=600 * MB, two_phase=False,
    invalidation_reason=None, failover=False, idle_seconds_left=None,
)  # fmt: skip


def slot(**changes) -> SlotInfo:
    return dataclasses.replace(SLOT, **changes)


def after(readings, **changes) -> float | None:
    """The forecast after readings of (clock, position, kept bytes)."""
    forecast = Forecast()
    for now, lsn, kept in readings:
        forecast.add(now, Lsn(lsn), slot(retained_bytes=kept))
    return forecast.seconds_until_lost(slot(**changes), lag_bytes=0, lag_seconds=0.0)


def test_a_slot_that_stands_still_lasts_as_long_as_the_wal_rate_allows():
    readings = [(t, 1000 * MB + t * MB, t * MB) for t in range(0, 30, 2)]
    assert after(readings) == pytest.approx(600)


def test_a_slot_that_keeps_up_with_a_busy_source_has_no_end_in_sight():
    """However small the allowance: what is written is let go again. Kept WAL moves in jumps all the same."""
    readings = [(t, t * MB, (t % 15) * MB) for t in range(0, 120, 2)]
    seconds = after(readings)
    assert seconds is None or seconds > 3600


def test_a_slot_that_keeps_up_by_half_falls_behind_by_half():
    readings = [(t, t * MB, t * MB // 2) for t in range(0, 60, 2)]
    assert after(readings) == pytest.approx(1200, rel=0.01)


def test_bursts_are_spread_over_the_window():
    rng = random.Random(1)
    kept, readings = 0, []
    for t in range(0, 120, 2):
        kept += rng.choice((0, 0, 0, 8 * MB))  # 1 MB/s on average
        readings.append((t, kept, kept))
    assert 250 < after(readings) < 1500


def test_no_forecast_before_there_is_something_to_go_by():
    assert after([]) is None
    assert after([(0, 0, 0)]) is None
    assert after([(0, 0, 0), (2, 100 * MB, 100 * MB)]) is None, "two seconds may be a burst"
    assert after([(5, 0, 0), (5, 100 * MB, 100 * MB)]) is None, "a clock that stands"


def test_before_there_are_readings_the_lag_tells_the_rate():
    """As for `status`, which reads once, while the service is stopped or stuck."""
    forecast = Forecast()
    forecast.add(0.0, Lsn(50 * MB), SLOT)
    assert forecast.seconds_until_lost(SLOT, lag_bytes=50 * MB, lag_seconds=100.0) == pytest.approx(1200)
    assert forecast.seconds_until_lost(SLOT, lag_bytes=50 * MB, lag_seconds=1.0) is None
    assert forecast.seconds_until_lost(SLOT, lag_bytes=0, lag_seconds=1000.0) is None
    assert forecast.seconds_until_lost(SLOT, lag_bytes=None, lag_seconds=None) is None


def test_an_idle_source_a_shrinking_backlog_and_no_limit_have_no_end():
    assert after([(t, 5 * MB, 5 * MB) for t in range(0, 60, 2)]) is None
    assert after([(t, (t + 60) * MB, (60 - t) * MB) for t in range(0, 60, 2)]) is None
    assert after([(t, t * MB, t * MB) for t in range(0, 60, 2)], safe_bytes=None) is None


def test_what_was_before_another_server_or_another_slot_does_not_count():
    """A failover or a restore takes the position back; a slot made anew keeps nothing yet."""
    fast = [(t, 1000 * MB + t * MB, t * MB) for t in range(0, 60, 2)]
    assert after([*fast, (60, 900 * MB, 0), (62, 900 * MB, 0)]) is None
    forecast = Forecast()
    for now, lsn, kept in fast:
        forecast.add(now, Lsn(lsn), slot(retained_bytes=kept))
    forecast.add(60, Lsn(1060 * MB), None)
    forecast.add(62, Lsn(1062 * MB), SLOT)
    assert forecast.seconds_until_lost(SLOT, lag_bytes=0, lag_seconds=0.0) is None


def test_a_source_that_did_not_answer_leaves_a_gap_and_no_more():
    forecast = Forecast()
    for t in range(0, 60, 2):
        seen = None if 20 < t < 40 else Lsn(t * MB)
        forecast.add(t, seen, slot(retained_bytes=t * MB) if seen is not None else None)
    assert forecast.seconds_until_lost(SLOT, lag_bytes=0, lag_seconds=0.0) == pytest.approx(600)


def test_the_end_itself_is_zero():
    assert after([], wal_status="lost", safe_bytes=None) == 0.0
    assert after([], invalidation_reason="idle_timeout") == 0.0
    assert after([], wal_status="unreserved", safe_bytes=0) == 0.0


def test_an_idle_timeout_counts_where_it_comes_first():
    assert after([], idle_seconds_left=90.0) == 90.0
    readings = [(t, t * MB, t * MB) for t in range(0, 60, 2)]
    assert after(readings, idle_seconds_left=90.0) == 90.0
    assert after(readings, idle_seconds_left=9000.0) == pytest.approx(600)


def test_never_negative_never_nan():
    rng = random.Random(7)
    for _ in range(300):
        forecast = Forecast()
        now = 0.0
        for _ in range(rng.randrange(0, 40)):
            now += rng.choice((0.0, 0.1, 2.0, 500.0))
            reading = slot(retained_bytes=rng.randrange(1 << 50), safe_bytes=rng.choice((None, 0, 1, 1 << 60)))
            lsn = rng.choice((None, Lsn(rng.randrange(1 << 63))))
            forecast.add(now, lsn, rng.choice((reading, reading, None)))
        for lag in ((None, None), (0, 0.0), (1 << 60, 1e-9), (5, 1e9)):
            found = forecast.seconds_until_lost(
                slot(safe_bytes=rng.choice((None, 0, 7))), lag_bytes=lag[0], lag_seconds=lag[1]
            )
            assert found is None or (found >= 0 and math.isfinite(found))
