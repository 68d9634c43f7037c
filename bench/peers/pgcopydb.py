"""pgcopydb, Debian's package: `clone` for the snapshot, `follow` for the stream."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg

from bench.lab import execute, source_lsn
from bench.peers import Case, Measured
from bench.process import PeerFailed, run

SLOT = "pgcopydb"


def program() -> str | None:
    """Where `bench/get-pgcopydb.sh` has put it, or where the system has it."""
    beside = Path(sys.executable).parent / "pgcopydb"
    return str(beside) if beside.exists() else shutil.which("pgcopydb")


def version() -> str | None:
    """As it says itself."""
    found = program()
    if found is None:
        return None
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).partition("\n")[0].removeprefix("pgcopydb version ").strip()


class _Pgcopydb:
    name = "pgcopydb"
    mapped: frozenset[str] = frozenset()
    target_dsn: str | None = None

    def __init__(self, case: Case) -> None:
        self._case = case
        self._work = case.lab.directory / "pgcopydb"

    def unavailable(self) -> str | None:
        return None if program() else "pgcopydb is not installed: bench/get-pgcopydb.sh .venv/bin/pgcopydb"

    def _env(self) -> dict[str, str]:
        assert self.target_dsn is not None
        return {
            # It runs pg_dump and pg_restore, which must not be older than the servers.
            "PATH": f"{self._case.lab.programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PGCOPYDB_SOURCE_PGURI": self._case.source_dsn,
            "PGCOPYDB_TARGET_PGURI": self.target_dsn,
        }

    def _pgcopydb(self, *words: str, timeout_s: float = 3600.0) -> tuple[Measured, str]:
        found = program()
        assert found is not None
        usage = run([found, *words, "--dir", self._work], env=self._env(), timeout_s=timeout_s)
        return Measured(usage.seconds, cpu_s=usage.cpu_s, peak_rss=usage.peak_rss), usage.output

    def _clone(self, *words: str) -> Measured:
        jobs = str(self._case.workers)
        # The size from which our own settings split a table by default.
        return self._pgcopydb(
            "clone", "--table-jobs", jobs, "--index-jobs", jobs, "--split-tables-larger-than", "256MB",
            "--no-owner", "--no-acl", *words,
        )[0]  # fmt: skip

    def clean(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        if self.target_dsn is not None:
            self._case.lab.drop(self.target_dsn)
            self.target_dsn = None


class Snapshot(_Pgcopydb):
    """`pgcopydb clone` into an empty database: it creates the schema by itself."""

    def prepare(self) -> None:
        self.target_dsn = self._case.lab.new_target("cloned")

    def run(self) -> Measured:
        return self._clone()


class Stream(_Pgcopydb):
    """`pgcopydb follow` up to the source's position. It decodes with wal2json, which the source needs."""

    name = "pgcopydb follow"

    def unavailable(self) -> str | None:
        missing = super().unavailable()
        if missing is not None:
            return missing
        try:
            execute(
                self._case.source_dsn,
                f"SELECT pg_create_logical_replication_slot('{SLOT}', 'wal2json')",
                f"SELECT pg_drop_replication_slot('{SLOT}')",
            )
        except psycopg.errors.UndefinedFile:
            return "it decodes with wal2json, which the source does not have (Debian builds it for PostgreSQL 15)"
        return None

    def prepare(self) -> None:
        """The source is quiet: slot first, then the clone, and nothing falls between."""
        self.target_dsn = self._case.lab.new_target("followed")
        self._broken = ""
        self._pgcopydb("stream", "setup", "--not-consistent")
        self._clone("--resume", "--not-consistent")
        execute(self._case.source_dsn, "UPDATE pgcopydb.sentinel SET apply = true")

    def run(self) -> Measured:
        if self._broken:
            raise PeerFailed(f"stuck since: {self._broken}")
        lsn = source_lsn(self._case.source_dsn)
        execute(self._case.source_dsn, f"UPDATE pgcopydb.sentinel SET endpos = '{lsn}'")
        measured, output = self._pgcopydb("follow", "--resume", "--not-consistent", "--endpos", lsn, timeout_s=60)
        if " ERROR " in output:
            # It ends with exit code 0 all the same, and does not get past that change in another run.
            self._broken = next(line for line in output.splitlines() if " ERROR " in line).partition(" ERROR ")[2]
            raise PeerFailed(self._broken)
        return measured

    def clean(self) -> None:
        execute(
            self._case.source_dsn,
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{SLOT}'",
            "DROP SCHEMA IF EXISTS pgcopydb CASCADE",
        )
        target = self.target_dsn
        super().clean()
        if target is not None:
            execute(
                self._case.lab.target.dsn(),
                f"SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = '{SLOT}'",
            )
