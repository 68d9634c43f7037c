"""The command line of the soak: progress on stderr, one JSON document on stdout, exit code 1 at a difference."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from random import SystemRandom

from replicator.demo.servers import find_installations
from tests.faults.soak.run import soak
from tests.pairs import WANTED_PAIRS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=None, help="repeats what happens, though not when; default: random")
    parser.add_argument("--pair", action="append", metavar="SOURCE:TARGET", help="majors; default: all known pairs")
    parser.add_argument("--first-round", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=None, help="end after so many; default: when the time is up")
    parser.add_argument("--logs", type=Path, default=None, help="where the logs of a failed round are kept")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # everything is put away, as with Ctrl-C
    installed = find_installations()
    wanted = [parse_pair(text) for text in options.pair] if options.pair else list(WANTED_PAIRS)
    pairs = [pair for pair in wanted if installed.keys() >= set(pair)]
    if not pairs:
        parser.error(f"no PostgreSQL programs for {wanted}; found: {sorted(installed)}")
    seed = SystemRandom().randrange(1, 1 << 31) if options.seed is None else options.seed
    sys.stderr.write(f"seed {seed}\n")
    tally = soak(
        seed,
        options.minutes * 60,
        pairs,
        first_round=options.first_round,
        rounds=options.rounds,
        logs=options.logs,
    )
    sys.stdout.write(json.dumps(tally.to_json(), indent=2) + "\n")
    return 0 if tally.failure is None else 1


def parse_pair(text: str) -> tuple[int, int]:
    source, _, target = text.partition(":")
    return int(source), int(target)


if __name__ == "__main__":
    sys.exit(main())
