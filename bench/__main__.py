"""`python -m bench`: this replicator beside PostgreSQL's own subscription. Prints a table, writes JSON."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path

from bench.lab import Lab, children_cpu_s, lab, native_catch_up, native_pause, native_subscribe, native_unsubscribe


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the snapshot")
    parser.add_argument("--transactions", type=int, default=100_000, help="three-row transactions per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--durable", action="store_true", help="fsync on")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="replicator-bench-") as directory,
        lab(Path(directory), rows=options.rows, durable=options.durable) as made,
    ):
        servers = f"PostgreSQL {made.source.major} → {made.target.major}, {platform.machine()}"
        say(f"{servers}, fsync {'on' if options.durable else 'off'}, ID maps on in ours; seconds include process start")
        figures = measure(made, options.rows, options.transactions, options.rounds)
    if options.json:
        told = {name: str(value) for name, value in vars(options).items()}
        options.json.write_text(json.dumps({"servers": servers, "options": told, **figures}, indent=2))


def measure(made: Lab, rows: int, transactions: int, rounds: int) -> dict[str, object]:
    made.replicator("users", "import", str(made.settings.parent / "map.json"))
    snapshot = made.replicator("snapshot"), native_subscribe(made)
    compare(f"snapshot of {rows} rows", snapshot)
    streams = []
    for number in range(rounds):
        native_pause(made)
        made.execute(made.source_dsn, f"CALL public.bench_transactions({transactions})")
        # In turn, so that neither always finds the caches warm.
        if number % 2 == 0:
            pair = (ours := catch_up(made)), native_catch_up(made)
        else:
            native = native_catch_up(made)
            pair = (ours := catch_up(made)), native
        streams.append(pair)
        compare(f"{transactions} × 3 rows, round {number + 1}", (ours, pair[1]))
    ratio = statistics.median(native / ours for ours, native in streams)
    say(f"stream: {ratio:.2f} × the subscription (median)")
    native_unsubscribe(made)
    return {"snapshot_s": snapshot, "streams_s": streams, "stream_ratio": ratio}


def catch_up(made: Lab) -> float:
    """Our seconds; prints the CPU time of our process as well."""
    before = children_cpu_s()
    seconds = made.replicator("run", "--until-caught-up")
    say(f"    CPU of our process: {children_cpu_s() - before:.1f} s")
    return seconds


def compare(what: str, seconds: tuple[float, float]) -> None:
    ours, native = seconds
    say(f"{what:32} ours {ours:6.1f} s   subscription {native:6.1f} s   {native / ours:.2f} ×")


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
