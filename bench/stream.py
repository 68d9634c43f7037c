"""Streams: how fast each mover catches up with what was written while it was paused."""

from __future__ import annotations

from bench.data import live
from bench.lab import Lab
from bench.options import Options, Say
from bench.peers import Case, Peer, ours, pgcopydb, recvlogical, subscription
from bench.report import Figure, Report
from bench.rounds import add, check, prepared, rotated, timed
from bench.workloads import WORKLOADS, Workload

SECTION = "stream"


def measure(lab: Lab, options: Options, report: Report, say: Say) -> None:
    """Every workload, every peer, ``options.rounds`` times."""
    case = live(lab, options.live_rows)
    mine = ours.Stream(case)
    others: list[Peer] = [subscription.Stream(case), pgcopydb.Stream(case), recvlogical.Stream(case)]
    peers: list[Peer] = [mine, *(peer for peer in others if options.takes(peer.name))]
    chosen = [workload for workload in WORKLOADS if not options.workloads or workload.name in options.workloads]
    for workload in chosen:
        workload.install(case.source_dsn)
    with prepared(peers, report, SECTION, say) as ready:
        for workload in chosen:
            count = max(20, int(options.transactions * workload.share))
            say(f"  {workload.title}")
            for number in range(options.rounds):
                _round(case, workload, count, number, ready, report, say)
            fault = mine.verify()
            if fault is not None:
                _void(report, workload, fault)
                say(f"    {mine.name}: VOID: {fault}")
    lab.drop(case.source_dsn)


def _round(
    case: Case, workload: Workload, count: int, number: int, peers: list[Peer], report: Report, say: Say
) -> None:
    changes = workload.write(case.source_dsn, count)
    for peer in rotated(peers, number):
        measured, fault = timed(case.lab, peer)
        fault = fault or check(case.source_dsn, peer, workload.tables)
        add(report, Figure(SECTION, workload.title, peer.name, number, changes, measured, fault), say)


def _void(report: Report, workload: Workload, fault: str) -> None:
    report.figures = [
        Figure(f.section, f.case, f.peer, f.round, f.changes, f.measured, fault)
        if (f.section, f.case, f.peer) == (SECTION, workload.title, ours.Stream.name)
        else f
        for f in report.figures
    ]
