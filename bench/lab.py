"""The laboratory: a source and a target server with the same settings, and plain SQL on both."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg
from psycopg import sql

from bench.process import run
from replicator.demo.servers import Server, find_installations

# The same on both servers and for every peer; everything else is PostgreSQL's default.
SERVER_SETTINGS = {
    "shared_buffers": "512MB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "max_worker_processes": "16",
    "max_logical_replication_workers": "8",
}


@dataclass
class Lab:
    """Running servers. ``programs``: psql, pg_dump and others, of the newer server's version."""

    source: Server
    target: Server
    directory: Path
    programs: Path
    durable: bool
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def new_source(self, name: str) -> str:
        """DSN of a new database on the source."""
        return self.source.create_database(f"{name}_{next(self._numbers)}")

    def new_target(self, name: str) -> str:
        """DSN of a new database on the target."""
        return self.target.create_database(f"{name}_{next(self._numbers)}")

    def drop(self, dsn: str) -> None:
        """Drop a database of either server."""
        server = self.source if urlsplit(dsn).port == self.source.port else self.target
        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(str(name))))

    def calm(self) -> None:
        """Before each timed run: what earlier ones left to write, or to decode once more, is done now.

        A slot whose reader left right behind a large transaction starts in front of it again: whether that happens
        depends on the moment, and took the source 2 s in some rounds of one giant transaction.
        """
        for server in (self.source, self.target):
            execute(server.dsn(), "CHECKPOINT")
        with psycopg.connect(self.source.dsn(), autocommit=True) as conn:
            databases = conn.execute("SELECT DISTINCT database FROM pg_replication_slots").fetchall()
        for (name,) in databases:
            execute(
                self.source.dsn(name),
                "SELECT pg_replication_slot_advance(slot_name, confirmed_flush_lsn) FROM pg_replication_slots"
                " WHERE database = current_database() AND NOT active",
            )

    def server_cpu_s(self) -> float:
        """CPU time of both servers so far, all their processes together, those that have ended included."""
        total = 0.0
        for server in (self.source, self.target):
            postmaster = psutil.Process(server.pid)
            for process in (postmaster, *postmaster.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    total += sum(process.cpu_times()[:4])  # user, system, and of children that have ended both
        return total

    def psql(self, dsn: str, script: Path) -> float:
        """Run a script; its seconds."""
        return run([self.programs / "psql", "-qX", "-v", "ON_ERROR_STOP=1", "-f", script, dsn]).seconds

    def dump_schema(self, dsn: str, *options: str) -> tuple[Path, float]:
        """The database's schema as a script, and the seconds it took to write."""
        path = self.directory / f"schema_{next(self._numbers)}.sql"
        # Neither publications nor ownership: a target has its own.
        options = ("--schema-only", "--no-publications", "--no-owner", *options)
        return path, run([self.programs / "pg_dump", *options, "-f", path, dsn]).seconds


@contextmanager
def start_lab(directory: Path, *, durable: bool, pair: tuple[int, int]) -> Iterator[Lab]:
    """Two servers of these major versions, or of the newest here where one is missing."""
    installations = find_installations()
    source_major, target_major = (major if major in installations else max(installations) for major in pair)
    plugins = Path(sys.executable).parent.parent / "lib" / f"postgresql-{source_major}"  # bench/get-pgcopydb.sh's
    with (
        Server.start(
            source_major,
            settings={**SERVER_SETTINGS, "dynamic_library_path": f"$libdir:{plugins}"},
            durable=durable,
        ) as source,
        Server.start(target_major, settings=SERVER_SETTINGS, durable=durable) as target,
    ):
        programs = installations[max(source_major, target_major)]
        yield Lab(source, target, directory, programs, durable)


def execute(dsn: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


def value(dsn: str, statement: str) -> Any:
    """The only value of a query's only row."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute(statement.encode()).fetchone()
        return row[0] if row else None


def wait_until(dsn: str, statement: str, timeout_s: float = 1800.0) -> None:
    """Until ``statement`` gives true.

    Raises:
        TimeoutError: it did not.
    """
    deadline = time.monotonic() + timeout_s
    with psycopg.connect(dsn, autocommit=True) as conn:
        while time.monotonic() < deadline:
            row = conn.execute(statement.encode()).fetchone()
            if row and row[0]:
                return
            time.sleep(0.01)
    raise TimeoutError(f"not within {timeout_s:.0f} s: {statement}")


def source_lsn(dsn: str) -> str:
    """The source's present position, as text."""
    return str(value(dsn, "SELECT pg_current_wal_flush_lsn()"))


def user_tables(dsn: str) -> list[str]:
    """Tables of schema public, partitions left out."""
    return list(
        value(
            dsn,
            "SELECT array_agg(relname::text ORDER BY relname) FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
            " AND relname <> 'trigger_audit'",
        )
    )


def fingerprints(dsn: str, tables: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Per table the number of its rows and a sum over the hashes of their texts, whatever their order."""
    found = {}
    with psycopg.connect(dsn, autocommit=True, options="-c timezone=UTC") as conn:
        for table in tables:
            row = conn.execute(
                sql.SQL("SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {} t").format(
                    sql.Identifier("public", table)
                )
            ).fetchone()
            assert row is not None
            found[table] = (int(row[0]), int(row[1]))
    return found


def difference(source_dsn: str, target_dsn: str, tables: Sequence[str], counts_only: frozenset[str]) -> str | None:
    """What the target lacks, in words; None: nothing. ``counts_only``: tables whose rows are meant to differ."""
    expected, found = fingerprints(source_dsn, tables), fingerprints(target_dsn, tables)
    faults = []
    for table in tables:
        if expected[table][0] != found[table][0]:
            faults.append(f"{table}: {found[table][0]} rows instead of {expected[table][0]}")
        elif expected[table] != found[table] and table not in counts_only:
            faults.append(f"{table}: rows differ")
    return "; ".join(faults[:3]) or None
