"""A limit for streams: pg_recvlogical reads the same messages and throws them away. What the source needs to decode."""

from __future__ import annotations

import os
from contextlib import suppress

import psycopg

from bench.lab import execute, source_lsn
from bench.peers import Case, Measured
from bench.process import run

NAME = "bench_recvlogical"


class Stream:
    """`pg_recvlogical --start --file /dev/null` with our publication's options."""

    name = "pg_recvlogical"
    mapped: frozenset[str] = frozenset()
    target_dsn: str | None = None

    def __init__(self, case: Case) -> None:
        self._case = case

    def unavailable(self) -> str | None:
        return None

    def prepare(self) -> None:
        tables = ", ".join(f'public."{name}"' for name in self._case.tables)
        execute(
            self._case.source_dsn,
            f"CREATE PUBLICATION {NAME} FOR TABLE {tables} WITH (publish_via_partition_root)",
            f"SELECT pg_create_logical_replication_slot('{NAME}', 'pgoutput')",
        )

    def run(self) -> Measured:
        usage = run(
            [
                self._case.lab.programs / "pg_recvlogical", "-d", self._case.source_dsn, "--slot", NAME, "--start",
                "--no-loop", "--endpos", source_lsn(self._case.source_dsn), "--file", os.devnull,
                "-o", "proto_version=1", "-o", f"publication_names={NAME}", "-o", "binary=true",
            ]
        )  # fmt: skip
        return Measured(usage.seconds, usage.seconds, 0.0, usage.cpu_s, usage.peak_rss)

    def clean(self) -> None:
        with suppress(psycopg.errors.UndefinedObject):
            execute(self._case.source_dsn, f"SELECT pg_drop_replication_slot('{NAME}')")
        execute(self._case.source_dsn, f"DROP PUBLICATION IF EXISTS {NAME}")
