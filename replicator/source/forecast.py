"""How long the slot lasts: from how fast it falls behind, and from how much WAL the server still allows it."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Final

from replicator.model.lsn import Lsn
from replicator.source.slot import SlotInfo

_WINDOW_S: Final = 60.0
_MIN_SPAN_S: Final = 10.0  # a shorter look sees bursts


class Forecast:
    """Takes one reading after the other.

    What counts is how fast the kept WAL *grows*, not how fast it is written: a slot that keeps up with a busy source is
    never lost, however small its allowance. ``restart_lsn`` moves in jumps, every 15 s or so, and the kept WAL with
    it like the teeth of a saw; a line through all readings of the last minute sees past them.
    """

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int]] = deque()  # (clock, kept bytes)
        self._last_lsn: Lsn | None = None

    def add(self, now_s: float, lsn: Lsn | None, slot: SlotInfo | None) -> None:
        """One reading: the source's position and our slot there, at ``now_s`` of a monotonic clock."""
        if lsn is None:  # the source did not answer: what it wrote meanwhile, the next reading tells
            return
        if slot is None or slot.is_lost or (self._last_lsn is not None and lsn < self._last_lsn):
            self._readings.clear()  # another slot, or another server: what was before tells nothing
        self._last_lsn = lsn
        if slot is None or slot.is_lost:
            return
        self._readings.append((now_s, slot.retained_bytes))
        while len(self._readings) > 2 and self._readings[0][0] < now_s - _WINDOW_S:
            self._readings.popleft()

    def seconds_until_lost(self, slot: SlotInfo, *, lag_bytes: int | None, lag_seconds: float | None) -> float | None:
        """How long the slot lasts at this rate; 0 once it is lost or may be at any moment, None if no end is in sight.

        Args:
            lag_bytes, lag_seconds: how far the target is behind: the rate before there are readings enough.
        """
        if slot.is_lost or slot.safe_bytes == 0:
            return 0.0
        ends = [] if slot.idle_seconds_left is None else [slot.idle_seconds_left]
        rate = self._growth()
        if rate is None and lag_bytes is not None and lag_seconds is not None and lag_seconds >= _MIN_SPAN_S:
            rate = lag_bytes / lag_seconds
        if slot.safe_bytes is not None and rate is not None and rate >= 1.0:
            ends.append(slot.safe_bytes / rate)
        return min(ends, default=None)

    def _growth(self) -> float | None:
        """Bytes a second by which the kept WAL grows; None before there are readings enough."""
        if len(self._readings) < 2 or self._readings[-1][0] - self._readings[0][0] < _MIN_SPAN_S:
            return None
        times, sizes = zip(*self._readings, strict=True)
        return statistics.linear_regression(times, sizes).slope
