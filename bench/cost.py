"""What it costs, and whether it grows in proportion: snapshots of 1× to 8× the rows, backlogs of 1× to 100×."""

from __future__ import annotations

from bench.data import dominant, live
from bench.lab import Lab
from bench.options import Options, Say
from bench.peers import Measured, ours
from bench.report import Report
from bench.workloads import WORKLOADS

_ROWS = (1, 2, 4, 8)
_BACKLOGS = (1, 10, 100)


def measure(lab: Lab, options: Options, report: Report, say: Say) -> None:
    """Two tables: rows of a snapshot, transactions of a backlog."""
    report.tables["snapshot, growing"] = _snapshots(lab, options, say)
    report.tables["backlog of the mix, growing"] = _backlogs(lab, options, say)


def _snapshots(lab: Lab, options: Options, say: Say) -> list[list[str]]:
    table = [["rows", "seconds", "rows/s", "CPU µs/row", "peak MB"]]
    for times in _ROWS:
        made = dominant(lab, options.growth_rows * times, options.workers)
        peer = ours.Snapshot(made.case)
        try:
            peer.prepare()
            lab.calm()
            measured = peer.run()
        finally:
            peer.clean()
            lab.drop(made.case.source_dsn)
        table.append(_cells(made.rows, measured, measured.seconds - measured.schema_s))
        say("    snapshot of " + "  ".join(table[-1]))
    return table


def _backlogs(lab: Lab, options: Options, say: Say) -> list[list[str]]:
    table = [["changes", "session, s", "changes/s", "CPU µs/change", "peak MB"]]
    case = live(lab, options.live_rows)
    mix = WORKLOADS[0]
    mix.install(case.source_dsn)
    peer = ours.Stream(case)
    try:
        peer.prepare()
        mix.write(case.source_dsn, 100)
        peer.run()  # once, so that caches are warm for the smallest too
        for times in _BACKLOGS:
            changes = mix.write(case.source_dsn, options.backlog * times)
            lab.calm()
            measured = peer.run()
            assert measured.stream_s is not None
            table.append(_cells(changes, measured, measured.stream_s))
            say("    backlog of " + "  ".join(table[-1]))
    finally:
        peer.clean()
        lab.drop(case.source_dsn)
    return table


def _cells(count: int, measured: Measured, seconds: float) -> list[str]:
    """CPU time of the whole process, its start included."""
    cpu, peak = measured.cpu_s or 0.0, measured.peak_rss or 0
    return [f"{count:,}", f"{seconds:.2f}", f"{count / seconds:,.0f}", f"{cpu / count * 1e6:.1f}", f"{peak / 1e6:.0f}"]
