"""Faults at random moments, up to three of them at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.soak.kinds import KINDS, Course, Kind
from tests.faults.soak.site import Site

_AT_ONCE = 3
_POLL_S = 0.05


@dataclass(slots=True)
class _Running:
    kind: Kind
    course: Course
    until: float  # monotonic


def storm(site: Site, seconds: float, *, gap_s: float, enough: Callable[[], bool] = lambda: False) -> None:
    """Begin a fault every ``gap_s`` seconds on average; end all of them when the time is up, or it is ``enough``."""
    running: list[_Running] = []
    end = time.monotonic() + seconds
    next_at = time.monotonic() + site.rng.expovariate(1 / gap_s)
    look_at = 0.0
    while (now := time.monotonic()) < end and not enough():
        for each in [each for each in running if now >= each.until]:
            _go_on(site, running, each)
        site.watch()
        if now >= next_at:
            _begin(site, running)
            next_at = time.monotonic() + site.rng.expovariate(1 / gap_s)
        if now >= look_at and not site.touched & {"target"}:
            site.look_at_balances()
            look_at = time.monotonic() + 0.5
        time.sleep(_POLL_S)
    while running:
        for each in list(running):
            _go_on(site, running, each)
        time.sleep(_POLL_S)


def _begin(site: Site, running: list[_Running]) -> None:
    free = [kind for kind in KINDS if not kind.touches & site.touched and not (site.down and "service" in kind.touches)]
    if len(running) >= _AT_ONCE or not free:
        return
    [kind] = site.rng.choices(free, [kind.weight for kind in free])
    site.tally.fault(kind.name, f"with {', '.join(sorted(site.touched))}" if site.touched else "")
    site.touched |= kind.touches
    site.strained |= kind.strains
    each = _Running(kind, kind.begin(site), 0.0)
    running.append(each)
    _go_on(site, running, each)


def _go_on(site: Site, running: list[_Running], each: _Running) -> None:
    seconds = next(each.course, None)
    if seconds is None:
        running.remove(each)
        site.touched -= each.kind.touches
        return
    each.until = time.monotonic() + seconds
