"""A small source and target, their settings file, and the real commands run on them as a user would."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.oracle import assert_same_rows

Side = Literal["source", "target"]

# In every text that the tables hold: no command may print it.
ROW_VALUE = "zwiebelkuchen"

TABLES = ("customers", "orders", "notes")
# Each test that alters a column of `notes` has one of its own, so that sites can be used again.
SCHEMA = """
    CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, email text UNIQUE);
    CREATE TABLE orders (
        id int PRIMARY KEY, customer_id int NOT NULL REFERENCES customers, note text, amount numeric(10, 2)
    );
    CREATE TABLE notes (id int PRIMARY KEY, body text, heading text, mood text, colour text);
"""
ROWS = f"""
    INSERT INTO customers
    SELECT i, '{ROW_VALUE} ' || i, '{ROW_VALUE}' || i || '@example.org' FROM generate_series(1, 40) i;
    INSERT INTO orders SELECT i, 1 + i % 40, '{ROW_VALUE}', i / 3.0 FROM generate_series(1, 200) i;
    INSERT INTO notes
    SELECT i, '{ROW_VALUE} ' || i, '{ROW_VALUE}', '{ROW_VALUE}', '{ROW_VALUE}' FROM generate_series(1, 60) i;
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Site:
    """Two databases and the settings of a replication between them."""

    directory: Path
    source_dsn: str
    target_dsn: str
    slot: str
    tables: list[str] = field(default_factory=lambda: list(TABLES))
    more: str = ""  # further sections of the settings file
    of_source: str = ""  # further lines of its section [source]
    settled: bool = False  # left equal by the test before: the next one may use it
    _next_key: int = 1000
    _sessions: dict[Side, psycopg.Connection[Any]] = field(default_factory=dict)

    # ── data ───────────────────────────────────────────────────────────────────────────────────────────

    def fill(self) -> None:
        """Schema on both sides, rows on the source."""
        self.sql("source", SCHEMA + ROWS)
        self.sql("target", SCHEMA)

    def sql(self, side: Side, statements: str, *parameters: object) -> list[tuple[Any, ...]]:
        conn = self._sessions.get(side)
        if conn is None or conn.closed:
            dsn = self.source_dsn if side == "source" else self.target_dsn
            conn = self._sessions[side] = psycopg.connect(dsn, autocommit=True)
        cursor = conn.execute(statements, parameters or None)
        return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        while self._sessions:
            self._sessions.popitem()[1].close()

    def value(self, side: Side, statement: str, *parameters: object) -> Any:
        [(value,)] = self.sql(side, statement, *parameters)
        return value

    def write(self) -> None:
        """One transaction that changes every table."""
        first, self._next_key = self._next_key, self._next_key + 10
        rows = f"FROM generate_series({first}, {first + 9}) i"
        self.sql(
            "source",
            f"""
            INSERT INTO customers SELECT i, '{ROW_VALUE} new', NULL {rows};
            INSERT INTO orders SELECT i, i, '{ROW_VALUE} new', 1 {rows};
            INSERT INTO notes SELECT i, '{ROW_VALUE} 1', '{ROW_VALUE} 2', '{ROW_VALUE} 3', '{ROW_VALUE} 4' {rows};
            UPDATE customers SET name = name || '!' WHERE id % 10 = {first // 10 % 10};
            DELETE FROM orders WHERE id < 1000 AND id % 50 = {first // 10 % 50};
            """,
        )

    def assert_equal(self, *tables: str) -> None:
        """Nothing is lost: both sides hold the same rows."""
        with psycopg.connect(self.source_dsn) as source, psycopg.connect(self.target_dsn) as target:
            for table in tables or self.tables:
                assert assert_same_rows(source, target, table) > 0
        self.settled = True

    # ── state ──────────────────────────────────────────────────────────────────────────────────────────

    def checkpoint(self) -> str | None:
        """How far the target is, as recorded; None without a record."""
        if self.value("target", "SELECT to_regclass('replicator.checkpoint') IS NULL"):
            return None
        rows = self.sql("target", "SELECT applied_lsn::text FROM replicator.checkpoint WHERE slot = %s", self.slot)
        return rows[0][0] if rows else None

    def phase(self) -> str:
        return str(self.value("target", "SELECT phase FROM replicator.checkpoint WHERE slot = %s", self.slot))

    def table_state(self, table: str) -> str | None:
        """As recorded; None without a record."""
        if self.checkpoint() is None:
            return None
        rows = self.sql("target", "SELECT state FROM replicator.table_state WHERE table_name = %s", table)
        return rows[0][0] if rows else None

    def step(self, step: str) -> str | None:
        """State of a step of the cutover; None without one."""
        rows = self.sql("target", "SELECT state FROM replicator.cutover_step WHERE step = %s", step)
        return rows[0][0] if rows else None

    @staticmethod
    def wait(condition: Callable[[], object], otherwise: str, timeout_s: float = 40) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, otherwise
            time.sleep(0.02)

    def source_lsn(self) -> str:
        return str(self.value("source", "SELECT pg_current_wal_lsn()::text"))

    def assert_not_past(self, lsn: str) -> None:
        """Nothing that was written behind `lsn` counts as applied."""
        assert self.value("target", "SELECT %s::pg_lsn <= %s::pg_lsn", self.checkpoint(), lsn)

    def slots(self) -> int:
        return int(self.value("source", "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", self.slot))

    def contents(self) -> dict[str, list[tuple[Any, ...]]]:
        """The target's rows."""
        present = [table for table in self.tables if self.value("target", "SELECT to_regclass(%s)", table)]
        return {table: self.sql("target", f"SELECT * FROM {table} ORDER BY id") for table in present}

    # ── commands ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def config(self) -> Path:
        """The settings file, written anew."""
        path = self.directory / "replicator.toml"
        tables = ", ".join(f'"{table}"' for table in self.tables)
        path.write_text(
            f"tables = [{tables}]\n"
            f'[source]\ndsn = "{self.source_dsn}"\nslot = "{self.slot}"\npublication = "{self.slot}"\n{self.of_source}'
            f'[target]\ndsn = "{self.target_dsn}"\n[metrics]\nlisten = ""\n{self.more}'
        )
        return path

    def command(self, *words: str, timeout_s: float = 60, **environment: str) -> Ended:
        """Run a command to its end. Whatever it says, it says without traceback, password and rows."""
        with self.start(*words, **environment) as process:
            out, err = process.communicate(timeout=timeout_s)
        return self.decent(Ended(process.returncode, out, err), words)

    def ends(self, code: int, *words: str, says: tuple[str, ...] = (), **environment: str) -> Ended:
        """Run a command that must end with `code` and name fault and remedy."""
        ended = self.command(*words, **environment)
        assert ended.code == code, f"exit code {ended.code} instead of {code}\n{ended.out}\n{ended.err}"
        assert_says(ended, says)
        return ended

    def refused(self, code: int, *words: str, says: tuple[str, ...], **environment: str) -> Ended:
        """Run a command that must end with `code`, naming fault and remedy, and must leave state and rows alone."""
        before = self.checkpoint(), self.contents()
        ended = self.ends(code, *words, says=says, **environment)
        assert (self.checkpoint(), self.contents()) == before
        return ended

    def run(self) -> None:
        """The service until all that is on the source now is on the target."""
        self.done("run", "--until-caught-up")

    def done(self, *words: str) -> Ended:
        """Run a command that must succeed."""
        return self.ends(0, *words)

    @contextmanager
    def service(self, *options: str) -> Iterator[Service]:
        """The service as it streams; ended at the latest with the block."""
        with self.start("run", *options) as process:
            service = Service(self, process)
            try:
                service.wait_until_streaming()
                yield service
            finally:
                if process.poll() is None:
                    process.kill()

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        self.settled = False
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("REPLICATOR_", "PG"))}
        return subprocess.Popen(
            [sys.executable, "-m", "replicator", "-c", str(self.config), *words],
            env=variables | {"PYTHONPATH": str(Path.cwd()), "NO_COLOR": "1"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def decent(self, ended: Ended, words: tuple[str, ...] = ()) -> Ended:
        """Neither a traceback, nor a value of a row, nor a password was printed."""
        said = ended.out + ended.err
        assert "Traceback" not in said, said
        assert "replicator: unexpected " not in said, said  # what the commands say of an error that nobody foresaw
        assert ROW_VALUE not in said, said
        for dsn in (self.source_dsn, self.target_dsn, *(word for word in words if "://" in word)):
            password = str(conninfo_to_dict(dsn).get("password") or "")
            if len(password) > 8:  # a short one may be part of another word
                assert password not in said, "a password was printed"
        return ended


class Service:
    """`replicator run` in the background."""

    def __init__(self, site: Site, process: subprocess.Popen[str]) -> None:
        self._site, self._process = site, process

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def wait_until_streaming(self, timeout_s: float = 40) -> None:
        """Until it reads its slot, all tables being copied."""
        site, deadline = self._site, time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.runs, "".join(self._process.communicate())
            if self._slot_is_read() and site.checkpoint() is not None and site.phase() in ("catching_up", "streaming"):
                return
            time.sleep(0.05)
        raise AssertionError(f"not streaming within {timeout_s} s")

    def wait_until_caught_up(self, timeout_s: float = 40) -> None:
        """Until all that is on the source now is on the target."""
        # Behind it a commit that brings the position there: on an idle source only the next heartbeat would.
        lsn = self._site.value("source", "SELECT pg_logical_emit_message(true, 'test', '')::text")
        deadline = time.monotonic() + timeout_s
        while not self._site.value("target", "SELECT %s::pg_lsn >= %s::pg_lsn", self._site.checkpoint(), lsn):
            assert self.runs, "".join(self._process.communicate())
            assert time.monotonic() < deadline, f"not caught up within {timeout_s} s"
            time.sleep(0.05)

    def wait_until_confirmed(self, lsn: str, timeout_s: float = 40) -> None:
        """Until the slot has left everything before `lsn` behind."""
        passed = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"
        deadline = time.monotonic() + timeout_s
        while not self._site.value("source", passed, lsn, self._site.slot):
            assert time.monotonic() < deadline, f"{lsn} not confirmed within {timeout_s} s"
            time.sleep(0.05)

    def ends(self, code: int, says: tuple[str, ...] = (), timeout_s: float = 40) -> Ended:
        """It ends by itself, with `code`."""
        out, err = self._process.communicate(timeout=timeout_s)
        ended = self._site.decent(Ended(self._process.returncode, out, err))
        assert ended.code == code, f"exit code {ended.code} instead of {code}\n{out}\n{err}"
        assert_says(ended, says)
        return ended

    def stop(self) -> Ended:
        self._process.send_signal(signal.SIGTERM)
        return self.ends(0)

    def _slot_is_read(self) -> bool:
        active = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
        return self._site.sql("source", active, self._site.slot) == [(True,)]


def assert_says(ended: Ended, says: tuple[str, ...]) -> None:
    """The last lines on stderr, those of the error itself, match every pattern."""
    lines = [line for line in ended.err.splitlines() if line.startswith("replicator: ")]
    text = "\n".join(lines)
    for pattern in says:
        assert re.search(pattern, text), f"{pattern!r} is not in\n{text}\nof\n{ended.err}"
