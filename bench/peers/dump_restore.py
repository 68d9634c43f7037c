"""`pg_dump --jobs` into a directory, then `pg_restore --jobs`: what everybody has."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.peers import Case, Measured
from bench.process import run


class Snapshot:
    """Creates the schema by itself; indexes and constraints after the rows."""

    name = "pg_dump | pg_restore"
    mapped: frozenset[str] = frozenset()
    target_dsn: str | None = None

    def __init__(self, case: Case) -> None:
        self._case = case
        self._dump: Path = case.lab.directory / "dump"

    def unavailable(self) -> str | None:
        return None

    def prepare(self) -> None:
        self.target_dsn = self._case.lab.new_target("restored")

    def run(self) -> Measured:
        assert self.target_dsn is not None
        lab, jobs = self._case.lab, f"--jobs={self._case.workers}"
        dump = run(
            [lab.programs / "pg_dump", "--format=directory", "--compress=0", jobs, "--no-publications", "--no-owner",
             "-f", self._dump, self._case.source_dsn]
        )  # fmt: skip
        restore = run([lab.programs / "pg_restore", jobs, "--no-owner", "-d", self.target_dsn, self._dump])
        return Measured(
            dump.seconds + restore.seconds,
            cpu_s=dump.cpu_s + restore.cpu_s,
            peak_rss=max(dump.peak_rss, restore.peak_rss),
        )

    def clean(self) -> None:
        shutil.rmtree(self._dump, ignore_errors=True)
        if self.target_dsn is not None:
            self._case.lab.drop(self.target_dsn)
            self.target_dsn = None
