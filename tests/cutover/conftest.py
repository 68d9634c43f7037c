"""A small replication that runs: source, target and the service as a process of its own."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replicator.config import Settings
from replicator.cutover import StepRecord, run_cutover
from replicator.cutover.report import CutoverReport
from tests.cli.command import environment, running
from tests.conftest import DatabasePair

SCHEMA = """
CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);
CREATE TABLE orders (
    id bigserial PRIMARY KEY, customer_id bigint NOT NULL REFERENCES customers, note text NOT NULL);
CREATE INDEX orders_note ON orders (note);
"""
SEED = """
INSERT INTO customers (name) SELECT 'customer ' || n FROM generate_series(1, 20) n;
INSERT INTO orders (customer_id, note) SELECT 1 + n % 20, 'order ' || n FROM generate_series(1, 200) n;
DELETE FROM orders WHERE id > 150;
"""


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@dataclass
class Replication:
    """Both databases, the settings and the service. ``source`` and ``target`` are sessions of a plain client."""

    pair: DatabasePair
    directory: Path
    settings: Settings
    source: psycopg.Connection[Any]
    target: psycopg.Connection[Any]
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    after: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # what ends a fault
    service: subprocess.Popen[str] | None = None
    quarantine: bool = False  # whether refused rows are set aside

    def start_service(self) -> None:
        self.service = self.stack.enter_context(running("run", cwd=self.directory, **self.variables))
        try:
            wait_until(lambda: self.phase() in ("streaming", "cutting_over") and self.service_is_streaming(), 60)
        except AssertionError as exc:
            raise AssertionError((self.directory / "running.log").read_text()[-3000:]) from exc

    def stop_service(self) -> None:
        assert self.service is not None
        self.service.send_signal(signal.SIGTERM)
        assert self.service.wait(15) == 0

    @property
    def variables(self) -> dict[str, str]:
        return {
            "REPLICATOR_SOURCE__DSN": self.settings.source.dsn,
            "REPLICATOR_TARGET__DSN": self.settings.target.dsn,
            "REPLICATOR_SOURCE__SLOT": self.settings.source.slot,
            "REPLICATOR_METRICS__LISTEN": "",
            "REPLICATOR_STREAM__ON_REJECTED_ROW": "quarantine" if self.quarantine else "stop",
        }

    def phase(self) -> str:
        if self.target.execute("SELECT to_regclass('replicator.checkpoint')").fetchall() == [(None,)]:
            return "new"
        return "".join(phase for (phase,) in self.target.execute("SELECT phase FROM replicator.checkpoint"))

    def service_is_streaming(self) -> bool:
        return self.source.execute(
            "SELECT active FROM pg_replication_slots WHERE slot_name = %s", (self.settings.source.slot,)
        ).fetchall() == [(True,)]

    def steps(self) -> dict[str, str]:
        rows = self.target.execute("SELECT step, state FROM replicator.cutover_step ORDER BY position")
        return dict(rows.fetchall())

    def cutover(self, **options: Any) -> CutoverReport:
        return run_cutover(self.settings, **{"timeout_s": 60.0, **options})

    def cutover_process(self, script: str = "", **options: Any) -> subprocess.Popen[str]:
        """A cutover in a process of its own; ``script`` is the body of its progress callback ``(record)``."""
        text = f"""
import os, signal, sys, time
from replicator.config import Settings
from replicator.cutover import CutoverRefused, run_cutover
def progress(record):
    {script or "pass"}
try:
    run_cutover(Settings(), progress=progress, **{ {"timeout_s": 60.0, **options}!r})
except CutoverRefused as exc:
    sys.exit(f"refused: {{exc.message}}")
"""
        return subprocess.Popen(
            [sys.executable, "-c", text],
            cwd=self.directory,
            env=environment(**self.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, note: str) -> None:
        """One order by a new client of the source."""
        with psycopg.connect(self.pair.source_dsn, autocommit=True) as conn:
            conn.execute("INSERT INTO orders (customer_id, note) VALUES (1, %s)", (note,))

    def arrived(self, note: str) -> bool:
        return bool(self.target.execute("SELECT 1 FROM orders WHERE note = %s", (note,)).fetchall())

    def assert_open(self, note: str) -> None:
        """The source takes writes of new clients, and they reach the target."""
        assert self.phase() == "streaming"
        assert read_only_setting(self.source) is None
        self.write(note)
        wait_until(lambda: self.arrived(note))

    def assert_same(self) -> None:
        for statement in ("SELECT * FROM customers ORDER BY id", "SELECT * FROM orders ORDER BY id"):
            assert self.source.execute(statement).fetchall() == self.target.execute(statement).fetchall()


def read_only_setting(conn: psycopg.Connection[Any]) -> str | None:
    rows = conn.execute(
        """
        SELECT entry FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) entry
        WHERE datname = current_database() AND setrole = 0 AND entry LIKE 'default_transaction_read_only=%'
        """
    ).fetchall()
    return rows[0][0].partition("=")[2] if rows else None


@contextlib.contextmanager
def replicating(pair: DatabasePair, directory: Path) -> Iterator[Replication]:
    settings = Settings(
        source={"dsn": pair.source_dsn, "slot": f"cut_{directory.name}"[:60].lower().replace("-", "_")},  # type: ignore[arg-type]
        target={"dsn": pair.target_dsn},  # type: ignore[arg-type]
    )
    with contextlib.ExitStack() as stack:
        # Named like ours, so that the cutover leaves the test's own session alone when it ends the clients'.
        name = "replicator test"
        source = stack.enter_context(psycopg.connect(pair.source_dsn, autocommit=True, application_name=name))
        target = stack.enter_context(psycopg.connect(pair.target_dsn, autocommit=True, application_name=name))
        for conn in (source, target):
            conn.execute(SCHEMA)
        source.execute(SEED)
        replication = Replication(pair, directory, settings, source, target, stack)
        replication.start_service()
        yield replication


@pytest.fixture
def replication(pair: DatabasePair, tmp_path: Path) -> Iterator[Replication]:
    """Snapshot taken, stream running, 20 customers and 150 orders."""
    with replicating(pair, tmp_path) as replication:
        yield replication


@pytest.fixture
def own_replication(own_servers: DatabasePair, tmp_path: Path) -> Iterator[Replication]:
    """The same on private servers."""
    with replicating(own_servers, tmp_path) as replication:
        yield replication


def at(step: str, state: str, action: Callable[[], object]) -> Callable[[StepRecord], None]:
    """A progress callback that acts once, when ``step`` reaches ``state``."""
    done = []

    def progress(record: StepRecord) -> None:
        if (record.step.value, record.state.value) == (step, state) and not done:
            done.append(True)
            action()

    return progress
