"""Snapshots: from a schema and an empty target to all rows, indexes and constraints."""

from __future__ import annotations

from bench.data import Database, dominant, many
from bench.lab import Lab
from bench.options import Options, Say
from bench.peers import Peer, copy_pipe, dump_restore, ours, pgcopydb, subscription
from bench.report import Figure, Report
from bench.rounds import add, check, prepared, rotated, timed

SECTION = "snapshot"


def measure(lab: Lab, options: Options, report: Report, say: Say) -> None:
    """Both databases, every peer, ``options.rounds`` times."""
    made = dominant(lab, options.rows, options.workers)
    _compare(lab, made, f"one dominant table, {made.rows:,} rows", options, report, say)
    lab.drop(made.case.source_dsn)
    made = many(lab, options.rows // 2, options.many_tables, options.workers)
    _compare(lab, made, f"{len(made.case.tables)} tables, {made.rows:,} rows", options, report, say)
    lab.drop(made.case.source_dsn)


def _compare(lab: Lab, made: Database, title: str, options: Options, report: Report, say: Say) -> None:
    case = made.case
    mine = ours.Snapshot(case)
    # In these tables of ours user IDs are mapped; the others copy rows as they are.
    mine.mapped = mine.mapped | {name for name in case.tables if name.startswith("checks_")}
    others: list[Peer] = [
        subscription.Snapshot(case), pgcopydb.Snapshot(case), dump_restore.Snapshot(case), copy_pipe.Snapshot(case)
    ]  # fmt: skip
    peers: list[Peer] = [mine, *(peer for peer in others if options.takes(peer.name))]
    say(f"  {title}")
    for number in range(options.rounds):
        for peer in rotated(peers, number):
            with prepared([peer], report, f"{SECTION} / {title}", say) as ready:
                if not ready:
                    continue
                measured, fault = timed(lab, peer)
                fault = fault or check(case.source_dsn, peer, case.tables)
                if peer is mine and fault is None and number == options.rounds - 1:
                    fault = mine.verify()
                add(report, Figure(SECTION, title, peer.name, number, made.rows, measured, fault), say)
