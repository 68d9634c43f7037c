"""Mutated settings, map files, positions and names: `python -m tests.security.fuzz_files [--seed N] [--count N]`."""

from __future__ import annotations

import argparse
import os
import random
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from replicator.config import load, parse_size
from replicator.errors import ConfigError, Refused
from replicator.model.lsn import Lsn
from replicator.model.schema import parse_column_name, parse_table_name, show_table
from replicator.users.mapfile import read_map_file
from replicator.web.address import parse_listen
from tests.pgoutput.fuzz_decoder import mutate

SETTINGS = b"""
tables = ["organizations", "public.\\"a.b\\"", "profiles"]
[source]
dsn = "postgresql://u:hunter2@h:5432/d?sslmode=require"
slot = "replicator"
[snapshot]
workers = 4
split_above = "256MB"
[stream]
max_batch_rows = 20_000
max_batch_bytes = "16MiB"
on_new_column = "stop"
[metrics]
listen = "127.0.0.1:9187"
[id_maps.users]
kind = "table"
columns = ["profiles.user_id", "user_roles.user_id"]
[id_maps.profile_of_user]
kind = "lookup"
table = "profiles"
key = "user_id"
value = "id"
columns = ["t.\\"a.b\\""]
on_unmapped = "null"
[routes.orders]
source = "sales.orders"
[routes.orders.columns]
a = "b"
"""
MAP_FILE = b"""{"generatedAt": "2026-01-01T00:00:00Z", "retainUntil": "2026-04-01T00:00:00+02:00", "mappings": [
 {"supabaseUserId": "5ec2e75e-0000-4000-8000-000000000001", "stackAuthUserId": "5ec2e75e-0000-4000-8000-000000000002",
  "email": "ann@example.org", "migratedAt": 5},
 {"supabaseUserId": "5ec2e75e-0000-4000-8000-000000000003", "stackAuthUserId": "5ec2e75e-0000-4000-8000-000000000004",
  "email": null, "migratedAt": "2026-01-01"}]}"""
WORDS = (b"16/B374D848", b"16MiB", b" 2 kB ", b'"my.schema"."a.b"', b"public.orders.id", b"127.0.0.1:9187", b"[::1]:80")
# Where a parser of others gives in.
BOMBS = (
    b"[" * 5000,
    b"{" * 5000,
    b"a=" + b"[" * 5000,
    b"a={a=" * 3000,
    b"a = " + b"9" * 5000,
    b"." * 9999,
    b"a." * 9999,
    b'{"mappings": ' + b"9" * 5000 + b"}",
    b'{"mappings": [' + b"[" * 5000,
    b"\\xff",
    b"\x00",
    b'{"a": 1e999}',
    b"NaN",
    b'{"mappings": [], "retainUntil": 1e400}',
    b'{"mappings": [], "retainUntil": 99999999999999999999}',
    b'"\\ud800"',
    b'{"mappings": [{"email": "\\ud800"}]}',
    b'tables = ["\\u0000"]',
    b'[source]\nslot = "\\u0000"',
    b'[source]\ndsn = "\\u0000"',
    b'[metrics]\nlisten = "\\u0664"',
    b'[snapshot]\nsplit_above = "' + b"9" * 5000 + b'"',
    b"[snapshot]\nsplit_above = inf",
    b"[stream]\nmax_batch_rows = nan",
    b"tables = [1, {}]",
    b'tables = "a"',
)


def read_settings(path: Path, data: bytes) -> None:
    """As every command does, with all that is made of them later."""
    path.write_bytes(data)
    settings = load(path)
    settings.route_specs([])
    _ = settings.map_specs
    if settings.metrics.listen:
        parse_listen(settings.metrics.listen)


def read_map(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    read_map_file(path)


def read_word(path: Path, data: bytes) -> None:
    """What stands on the command line; these say with a ValueError what the command turns into a usage error."""
    text = os.fsdecode(data)
    assert parse_table_name(show_table(parse_table_name(text))) or "\\" in show_table(parse_table_name(text))
    for parse in (Lsn.parse, parse_size, parse_column_name):
        try:
            parse(text)
        except ValueError as exc:
            assert not isinstance(exc, UnicodeError), exc
    parse_listen(text)


def fuzz(count: int, seed: int) -> Counter[str]:
    """Read `count` mutated files; how many were taken, and how many refused. Any other error raises."""
    rng = random.Random(seed)
    result: Counter[str] = Counter()
    with TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        cases = [(read, bomb) for bomb in BOMBS for read in (read_settings, read_map, read_word)]
        for _ in range(count):
            read, data = cases.pop() if cases else _mutated(rng)
            try:
                read(path, data)
                result["taken"] += 1
            except (ConfigError, Refused) as exc:
                result[type(exc).__name__] += 1
                if "hunter2" in exc.message + exc.hint or "ann@" in exc.message + exc.hint:
                    raise AssertionError(f"seed {seed}: {data!r} is quoted: {exc}") from exc
            except BaseException as exc:
                raise AssertionError(f"seed {seed}: {type(exc).__name__}: {exc} from {data[:2000]!r}") from exc
    return result


def _mutated(rng: random.Random):  # type: ignore[no-untyped-def]
    match rng.randrange(3):
        case 0:
            return read_settings, mutate(SETTINGS, rng)
        case 1:
            return read_map, mutate(MAP_FILE, rng)
        case _:
            return read_word, mutate(rng.choice(WORDS), rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100_000)
    arguments = parser.parse_args()
    start = time.monotonic()
    found = fuzz(arguments.count, arguments.seed)
    print(f"seed {arguments.seed}: {dict(found)} in {time.monotonic() - start:.0f} s")  # noqa: T201 — a script


if __name__ == "__main__":
    main()
