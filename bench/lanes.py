"""Lanes: the same backlog through one slot and service, and through two with half of the changes each."""

from __future__ import annotations

from bench.data import live
from bench.lab import Lab
from bench.options import Options, Say
from bench.peers import Peer, ours
from bench.report import Figure, Report
from bench.rounds import add, check, prepared, rotated, timed
from bench.workloads import WORKLOADS

SECTION = "lanes"
# Of the mix's changes about half; none of these tables feeds an ID map of another one.
SECOND = ("sensor_readings", "event_logs")


def measure(lab: Lab, options: Options, report: Report, say: Say) -> None:
    """The mix, ``options.rounds`` times: until every lane has caught up."""
    case = live(lab, options.live_rows)
    mix = next(workload for workload in WORKLOADS if workload.name == "mix")
    mix.install(case.source_dsn)
    peers: list[Peer] = [ours.Stream(case), ours.Lanes(case, {2: SECOND}, slot="laned")]
    with prepared(peers, report, SECTION, say) as ready:
        for number in range(options.rounds):
            changes = mix.write(case.source_dsn, options.transactions)
            for peer in rotated(ready, number):
                measured, fault = timed(lab, peer)
                fault = fault or check(case.source_dsn, peer, mix.tables)
                add(report, Figure(SECTION, mix.title, peer.name, number, changes, measured, fault), say)
    lab.drop(case.source_dsn)
