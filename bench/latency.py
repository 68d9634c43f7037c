"""Latency: from a commit on the source, as its writer learns of it, until the row can be read on the target."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from bench.data import live
from bench.lab import Lab, execute, value, wait_until
from bench.options import Options, Say
from bench.peers import ours, subscription
from bench.pulse import FUNCTION, SCHEMA, TABLE, WRITERS, write
from bench.report import Report
from bench.rounds import rotated

_POLL_PAUSE_S = 0.0005
_WARM_S = 1.0  # of each run, left out: sessions are new and plans are cold


@dataclass(frozen=True, slots=True)
class Latency:
    """One run, in milliseconds. ``rate``: transactions per second that the writers really made."""

    peer: str
    round: int
    rate: float
    median: float
    p90: float
    p99: float
    highest: float


def measure(lab: Lab, options: Options, report: Report, say: Say) -> None:
    """Ours and the subscription, as it comes and committing as durably as ours, in turn under the same steady load."""
    case = live(lab, options.live_rows // 5, extra_schema=SCHEMA, extra_tables=[TABLE])
    execute(case.source_dsn, FUNCTION)
    mine, native = ours.Stream(case), subscription.Stream(case)
    found: list[Latency] = []
    try:
        mine.prepare()
        native.prepare()
        runs: list[Callable[[int], Latency]] = [
            lambda number: _ours(lab, mine, number, options),
            lambda number: _native(lab, native, number, options, durable=False),
            lambda number: _native(lab, native, number, options, durable=True),
        ]
        for number in range(options.rounds):
            for run in rotated(runs, number):
                lab.calm()
                latency = run(number)
                found.append(latency)
                say(f"    round {number + 1}  {latency.peer:38}{latency.rate:6.0f}/s  median {latency.median:.1f} ms"
                    f"  p99 {latency.p99:.1f} ms")  # fmt: skip
    finally:
        mine.clean()
        native.clean()
        lab.drop(case.source_dsn)
    report.tables[f"latency at {options.latency_rate:,} transactions/s, ms"] = _table(found)


def _ours(lab: Lab, peer: ours.Stream, number: int, options: Options) -> Latency:
    assert peer.target_dsn is not None
    with peer.live() as service:
        _first_pulse(peer.source_dsn, peer.target_dsn)
        latency = _run(lab, peer.name, peer.source_dsn, peer.target_dsn, number, options)
        service.finish(timeout_s=60, sigterm=True)
    return latency


def _native(lab: Lab, peer: subscription.Stream, number: int, options: Options, *, durable: bool) -> Latency:
    assert peer.target_dsn is not None
    peer.commit_durably(durable)
    peer.resume()
    _first_pulse(peer.source_dsn, peer.target_dsn)
    name = f"{peer.name}, synchronous_commit = on" if durable else peer.name
    latency = _run(lab, name, peer.source_dsn, peer.target_dsn, number, options)
    peer.pause()
    return latency


def _first_pulse(source_dsn: str, target_dsn: str) -> None:
    """Returns when a change written now has arrived: the mover is awake and has nothing left to catch up with."""
    mark = int(value(source_dsn, f"INSERT INTO public.{TABLE} SELECT -1, count(*) FROM public.{TABLE} RETURNING seq"))
    wait_until(target_dsn, f"SELECT EXISTS (SELECT FROM public.{TABLE} WHERE (writer, seq) = (-1, {mark}))", 120)


def _run(lab: Lab, name: str, source_dsn: str, target_dsn: str, number: int, options: Options) -> Latency:
    watcher = _Watcher(target_dsn)
    watcher.start()
    committed = write(
        lab.programs, source_dsn, rate=options.latency_rate, seconds=options.latency_s, first=watcher.before
    )
    watcher.wait_for({writer: max(s for w, s in committed if w == writer) for writer in range(WRITERS)})
    times = sorted(committed.values())
    warm = times[0] + int(_WARM_S * 1e9) if options.latency_s > 2 * _WARM_S else times[0]
    delays = sorted((watcher.seen(*key) - at) / 1e6 for key, at in committed.items() if at >= warm)
    rate = len(committed) / max((times[-1] - times[0]) / 1e9, 1e-9)
    centiles = statistics.quantiles(delays, n=100)
    return Latency(name, number, rate, statistics.median(delays), centiles[89], centiles[98], delays[-1])


class _Watcher(threading.Thread):
    """Looks again and again how far each writer's pulses have arrived on the target."""

    def __init__(self, dsn: str) -> None:
        super().__init__(name="watcher", daemon=True)
        self._conn = psycopg.connect(dsn, autocommit=True)
        self._done = threading.Event()
        self._arrivals: list[list[tuple[int, int]]] = [[] for _ in range(WRITERS)]  # (highest number, when)
        latest = f"(SELECT max(seq) FROM public.{TABLE} WHERE writer = {{}})"
        self._query = f"SELECT {', '.join(latest.format(writer) for writer in range(WRITERS))}".encode()

        self.before = self._look()

    def _look(self) -> list[int]:
        row = self._conn.execute(self._query, prepare=True).fetchone()
        assert row is not None
        return [number or 0 for number in row]

    def run(self) -> None:
        highest = list(self.before)
        while not self._done.is_set():
            numbers = self._look()
            now = time.time_ns()
            for writer, number in enumerate(numbers):
                if number > highest[writer]:
                    highest[writer] = number
                    self._arrivals[writer].append((number, now))
            time.sleep(_POLL_PAUSE_S)

    def wait_for(self, last: dict[int, int], timeout_s: float = 120.0) -> None:
        """Until the last pulses have arrived; ends the watching.

        Raises:
            TimeoutError: they did not.
        """
        deadline = time.monotonic() + timeout_s
        while any(not seen or seen[-1][0] < last[writer] for writer, seen in enumerate(self._arrivals)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the last pulses did not arrive within {timeout_s:.0f} s")
            time.sleep(0.01)
        self._done.set()
        self.join()
        self._conn.close()
        self._times = [dict(_each(seen, first)) for seen, first in zip(self._arrivals, self.before, strict=True)]

    def seen(self, writer: int, number: int) -> int:
        """When this pulse was first visible."""
        return self._times[writer][number]


def _each(arrivals: list[tuple[int, int]], before: int) -> list[tuple[int, int]]:
    """Every number with the time of the first look that found it, or a later one."""
    filled = []
    for number, at in arrivals:
        filled += [(each, at) for each in range(before + 1, number + 1)]
        before = number
    return filled


def _table(found: list[Latency]) -> list[list[str]]:
    rows = [["", "rate/s", "median", "p90", "p99", "highest", "median ÷ subscription's, per round"]]
    native = {each.round: each for each in found if each.peer == "subscription"}
    for name in dict.fromkeys(each.peer for each in found):
        runs = [each for each in found if each.peer == name]
        ratios = sorted(each.median / native[each.round].median for each in runs if each.round in native)
        rows.append([
            name,
            f"{statistics.median(each.rate for each in runs):.0f}",
            *(f"{statistics.median(getattr(each, key) for each in runs):.1f}" for key in ("median", "p90", "p99")),
            f"{max(each.highest for each in runs):.1f}",
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})" if ratios else "",
        ])  # fmt: skip
    return rows
