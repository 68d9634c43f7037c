"""Benchmarks side by side: this replicator and other ways to move the same rows, on the same servers and data."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import cost, lanes, latency, partitions, snapshot, stages, stream
from bench.lab import SERVER_SETTINGS, Lab, start_lab, value
from bench.options import Options, Say
from bench.peers import pgcopydb
from bench.plot import plot
from bench.report import Report, comparison_table, machine, markdown, show
from replicator import __version__

SECTIONS: dict[str, Callable[[Lab, Options, Report, Say], None]] = {
    "stream": stream.measure,
    "snapshot": snapshot.measure,
    "latency": latency.measure,
    "partitions": partitions.measure,
    "cost": cost.measure,
    "lanes": lanes.measure,
    "stages": stages.measure,
}
_QUICK = {
    "rounds": 1, "rows": 60_000, "transactions": 3_000, "many_tables": 20, "live_rows": 20_000, "latency_s": 3.0,
    "partition_rows": (20_000, 200_000), "partition_changes": 2_000, "growth_rows": 20_000, "backlog": 100,
}  # fmt: skip


def main() -> int:
    parser = _parser()
    given = parser.parse_args()
    options = _options(given)
    sections = [name for name in SECTIONS if name in given.sections or "all" in given.sections or not given.sections]
    started = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was measured is told and kept
    with (
        tempfile.TemporaryDirectory(prefix="replicator-bench-") as directory,
        start_lab(Path(directory), durable=options.durable, pair=options.pair) as lab,
    ):
        report = Report(_about(lab, options))
        for key, told in report.about.items():
            say(f"{key}: {told}")
        try:
            for name in sections:
                say(f"\n{name}")
                SECTIONS[name](lab, options, report, say)
        finally:
            report.about["minutes"] = round((time.monotonic() - started) / 60, 1)
            report.about["machine"]["load_after"] = round(os.getloadavg()[0], 2)
            _tell(report)
            _write(report, given)
    return 1 if any(figure.peer == "replicator" and not figure.valid for figure in report.figures) else 0


def _write(report: Report, given: argparse.Namespace) -> None:
    if given.json:
        report.write_json(given.json)
    if given.markdown:
        given.markdown.write_text(markdown(report))
    if given.plot:
        plot(report, given.plot)


def say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    default = Options()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, "all", []], help="none: all of them")
    parser.add_argument("--quick", action="store_true", help="small and once: whether it runs, not how fast")
    parser.add_argument("--rounds", type=int, help=f"default {default.rounds}")
    parser.add_argument("--scale", type=float, default=1.0, help="times the default sizes")
    parser.add_argument("--rows", type=int, help=f"rows of a snapshot, default {default.rows:,}")
    parser.add_argument("--transactions", type=int, help=f"of the mix, per round, default {default.transactions:,}")
    parser.add_argument("--partition-rows", type=int, nargs="+", help="sizes of the partitioned target")
    parser.add_argument("--workers", type=int, help=f"parallel copies of every peer, default {default.workers}")
    parser.add_argument("--durable", action=argparse.BooleanOptionalAction, default=True, help="fsync, on both servers")
    parser.add_argument("--pair", default="16:18", help="major versions of source and target")
    parser.add_argument("--peer", action="append", default=[], dest="peers", help="only this peer beside ours")
    parser.add_argument("--workload", action="append", default=[], dest="workloads", help="only this workload")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--plot", type=Path, help="write a plot here (.svg or .png)")
    return parser


def _options(given: argparse.Namespace) -> Options:
    options = Options(**_QUICK) if given.quick else Options()  # type: ignore[arg-type]
    scaled = {name: int(getattr(options, name) * given.scale) for name in ("rows", "transactions", "live_rows")}
    named = {name: getattr(given, name) for name in ("rounds", "rows", "transactions", "workers")}
    source, _, target = given.pair.partition(":")
    return dataclasses.replace(
        options,
        **scaled | {name: number for name, number in named.items() if number is not None},
        durable=given.durable,
        pair=(int(source), int(target or source)),
        peers=tuple(given.peers),
        workloads=tuple(given.workloads),
        partition_rows=tuple(given.partition_rows or options.partition_rows),
    )


def _about(lab: Lab, options: Options) -> dict[str, object]:
    def version(dsn: str) -> str:
        return str(value(dsn, "SHOW server_version"))

    return {
        "machine": machine(),
        "replicator": __version__,
        "source": f"PostgreSQL {version(lab.source.dsn())}",
        "target": f"PostgreSQL {version(lab.target.dsn())}",
        "programs": f"psql, pg_dump, pg_restore, pg_recvlogical {max(lab.source.major, lab.target.major)}",
        "pgcopydb": pgcopydb.version() or "not installed",
        "fsync": "on" if options.durable else "off",
        "server settings": SERVER_SETTINGS,
        "options": dataclasses.asdict(options),
    }


def _tell(report: Report) -> None:
    for (section, case), figures in report.comparisons().items():
        say(f"\n{section}: {case}")
        say(show(comparison_table(figures)))
    for heading, rows in report.tables.items():
        say(f"\n{heading}")
        say(show(rows))
    for what, reason in report.skipped.items():
        say(f"\nleft out: {what}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
