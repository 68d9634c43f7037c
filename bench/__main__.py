"""`python -m bench`: this replicator beside PostgreSQL's own subscription. Prints a table, writes JSON."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path

from bench.lab import Lab, children_cpu_s, lab, native_catch_up, native_pause, native_subscribe


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the snapshot")
    parser.add_argument("--transactions", type=int, default=100_000, help="three-row transactions per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--durable", action="store_true", help="fsync on")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="replicator-bench-") as directory:
        with lab(Path(directory), rows=options.rows, durable=options.durable) as made:
            print(f"PostgreSQL {made.source.major} → {made.target.major}, {platform.machine()}, "
                  f"fsync {'on' if options.durable else 'off'}, {options.rows} rows, ID maps on in ours", flush=True)  # fmt: skip
            figures = measure(made, options.transactions, options.rounds)
    if options.json:
        options.json.write_text(
            json.dumps({"options": {k: str(v) for k, v in vars(options).items()}, **figures}, indent=2)
        )


def measure(made: Lab, transactions: int, rounds: int) -> dict[str, object]:
    # made.replicator("users", "import", str(made.settings.parent / "map.json"))
    ours_s = made.replicator("snapshot")
    native_s = native_subscribe(made)
    print(
        f"snapshot                     ours {ours_s:6.1f} s   subscription {native_s:6.1f} s   {native_s / ours_s:.2f} ×",
        flush=True,
    )
    streams = []
    for number in range(rounds):
        native_pause(made)
        made.execute(made.source_dsn, f"CALL public.bench_transactions({transactions})")

        def ours() -> float:
            before = children_cpu_s()
            seconds = made.replicator("run", "--until-caught-up")
            print(
                f"  our process: {(children_cpu_s() - before) * 1e6 / (3 * transactions):.1f} µs CPU per change",
                flush=True,
            )
            return seconds

        pair = (ours(), native_catch_up(made)) if number % 2 == 0 else tuple(reversed((native_catch_up(made), ours())))
        streams.append(pair)
        print(f"{transactions} × 3 rows, round {number + 1}   ours {pair[0]:6.1f} s   subscription {pair[1]:6.1f} s   "
              f"{pair[1] / pair[0]:.2f} ×", flush=True)  # fmt: skip
    ratio = statistics.median(native / ours for ours, native in streams)
    print(f"stream, median ratio: {ratio:.2f} ×", flush=True)
    made.execute(
        made.native_dsn, "ALTER SUBSCRIPTION native DISABLE", "ALTER SUBSCRIPTION native SET (slot_name = NONE)"
    )
    made.execute(made.native_dsn, "DROP SUBSCRIPTION native")
    return {"snapshot_s": {"ours": ours_s, "native": native_s}, "streams_s": streams, "stream_ratio": ratio}


if __name__ == "__main__":
    main()
