"""A source, a target, the service and the commands, all as processes of their own; and what must hold at the end.

Both sides are compared with plain SQL (`tests.oracle`), and with the product's own ``verify``.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from replicator.demo.freshtrack import (
    EXTRA_TABLES,
    Workload,
    extras_schema,
    generate,
    settings_toml,
    source_schema,
    target_schema,
    write_map_file,
)
from tests.endurance.process import FAILPOINTS, Service, command, environment, tail
from tests.oracle import assert_same_freshtrack, assert_same_rows, assert_valid_foreign_keys

COMMAND_TIMEOUT_S = 600.0
WAIT_S = 400.0  # for what takes seconds on a machine of one's own

Row = tuple[Any, ...]


@dataclass
class Rig:
    """One replication. ``options`` name the settings file, or both DSNs."""

    source: Any  # Server
    target: Any
    source_dsn: str
    target_dsn: str
    directory: Path
    options: Sequence[str]
    environment: dict[str, str] = field(default_factory=environment)
    map_file: Path | None = None
    slot: str = "replicator"

    def __post_init__(self) -> None:
        self.writers_dsn = self.source_dsn
        self.service = Service(self.options, self.directory, self.environment)
        self.indexes_before = self.indexes()
        self.downtime_s: float | None = None
        # After a cutover the source's database is read-only for all that do not say otherwise.
        self.source_dsn = make_conninfo(self.source_dsn, options="-c default_transaction_read_only=off")

    # ── asking ─────────────────────────────────────────────────────────────────────────────────────────

    def ask(self, side: str, statement: str, *parameters: object) -> list[Row]:
        dsn = self.source_dsn if side == "source" else self.target_dsn
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as conn:
            cursor = conn.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def ask_state(self, statement: str, *parameters: object) -> list[Row]:
        """Ask the state on the target; no rows while it does not exist or cannot be reached."""
        try:
            return self.ask("target", statement, *parameters)
        except (psycopg.errors.UndefinedTable, psycopg.OperationalError):
            return []

    def phase(self) -> str:
        rows = self.ask_state("SELECT phase FROM replicator.checkpoint WHERE slot = %s", self.slot)
        return rows[0][0] if rows else "new"

    def clock(self) -> datetime:
        """The target's."""
        [(now,)] = self.ask("target", "SELECT clock_timestamp()")
        assert isinstance(now, datetime)
        return now

    def cutover_steps(self, since: datetime) -> dict[str, str]:
        """Step → state, of an attempt that began after ``since``."""
        rows = self.ask_state(
            "SELECT step, state FROM replicator.cutover_step WHERE slot = %s AND started_at > %s", self.slot, since
        )
        return dict(rows)

    def lag_bytes(self) -> int | None:
        rows = self.ask_state("SELECT applied_lsn::text FROM replicator.checkpoint WHERE slot = %s", self.slot)
        if not rows:
            return None
        [(lag,)] = self.ask("source", "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s::pg_lsn)::bigint", rows[0][0])
        return int(lag)

    def walsender(self) -> list[Row]:
        """Process and start of the slot's WAL sender."""
        return self.ask(
            "source",
            "SELECT r.pid, r.backend_start FROM pg_stat_replication r JOIN pg_replication_slots s"
            " ON s.active_pid = r.pid WHERE s.slot_name = %s",
            self.slot,
        )

    def indexes(self) -> list[Row]:
        """Every index of the target. Those of partitions without their names, which PostgreSQL makes up."""
        return self.ask(
            "target",
            "SELECT CASE WHEN t.relispartition THEN '' ELSE i.relname::text END, x.indrelid::regclass::text,"
            " regexp_replace(pg_get_indexdef(i.oid), 'INDEX \\S+ ON', 'INDEX ON'), x.indisvalid"
            " FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid"
            " JOIN pg_namespace n ON n.oid = t.relnamespace WHERE n.nspname = 'public' ORDER BY 1, 2, 3",
        )

    def sequences(self, side: str) -> dict[str, Row]:
        """Position of every sequence but the audit table's own, which no table of the source feeds."""
        names = self.ask(
            side,
            "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind = 'S' AND n.nspname = 'public' AND c.relname !~ '^trigger_audit'",
        )
        return {name: self.ask(side, f"SELECT last_value, is_called FROM {name}")[0] for (name,) in names}

    # ── doing ──────────────────────────────────────────────────────────────────────────────────────────

    def popen(self, *arguments: str, failpoints: str = "") -> subprocess.Popen[str]:
        """A command that the test goes on beside."""
        return subprocess.Popen(
            command(*self.options, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            env=self.environment | {FAILPOINTS: failpoints},
        )

    def run(self, *arguments: str, exits: int = 0) -> str:
        """Run a command to its end; its stdout."""
        process = self.popen(*arguments)
        try:
            out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{arguments[0]} did not end\n{out}\n{err}\n{tail(self.service.log)}") from None
        assert process.returncode == exits, (
            f"{' '.join(arguments)}: exit code {process.returncode}\n{out}\n{err}\n{tail(self.service.log)}"
        )
        return out

    def wait_until(self, condition: Callable[[], object], what: str, *, runs: bool = True) -> None:
        """Poll; fails when time is up, or when the service ends though it should run."""
        deadline, pause_s = time.monotonic() + WAIT_S, 0.02
        while not condition():
            if runs:
                self.service.require_running()
            assert time.monotonic() < deadline, f"waited {WAIT_S:g} s: {what}\n{tail(self.service.log)}"
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, 0.1)  # most conditions make a connection of their own

    def wait_for_stream(self) -> None:
        self.wait_until(
            lambda: self.phase() in ("catching_up", "streaming", "cutting_over"), "the snapshot is not done"
        )

    def wait_until_near(self, within_bytes: int = 1 << 20) -> None:
        """The service streams, and has nearly caught up with writers that go on writing."""
        self.wait_for_stream()
        self.wait_until(self.walsender, "the stream does not begin")
        self.wait_until(lambda: (lag := self.lag_bytes()) is not None and lag < within_bytes, "the lag stays")

    def wait_until_drained(self) -> None:
        """All that is on the source now is on the target."""
        # Behind it a commit that brings the position there: on an idle source only the next heartbeat would.
        [(lsn,)] = self.ask("source", "SELECT pg_logical_emit_message(true, 'test', '')::text")
        self.wait_for_stream()
        self.wait_until(
            lambda: self.ask_state(
                "SELECT 1 FROM replicator.checkpoint WHERE slot = %s AND applied_lsn >= %s::pg_lsn", self.slot, lsn
            ),
            f"{lsn} is not reached",
        )

    def cutover(self, *options: str) -> dict[str, Any]:
        """Cut over while the service runs, which must end by itself; the report."""
        file = self.directory / "cutover.json"
        self.run("cutover", "--yes", "--report", str(file), *options)
        return self.cutover_done(file)

    def cutover_done(self, file: Path) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(file.read_text())
        assert report["finalized"], report
        assert self.service.wait_for_end() == 0, tail(self.service.log)
        assert self.phase() == "cut_over"
        self.downtime_s = report["write_downtime_seconds"]
        return report

    def close(self) -> None:
        self.service.close()

    # ── what must hold ─────────────────────────────────────────────────────────────────────────────────

    def assert_equal(self) -> dict[str, int]:
        """FreshTrack with its extras: rows, foreign keys, triggers, indexes, and ``verify``; rows per table."""
        counts = assert_same_freshtrack(self.source_dsn, self.target_dsn, self.map_file, EXTRA_TABLES)
        self.assert_whole()
        assert self.ask("target", "SELECT count(*) FROM trigger_audit") == [(0,)], "triggers of the target have fired"
        return counts

    def assert_same(self, *tables: str) -> int:
        """Tables that are replicated as they are; their rows."""
        with psycopg.connect(self.source_dsn) as source, psycopg.connect(self.target_dsn) as target:
            rows = sum(assert_same_rows(source, target, table) for table in tables)
        self.assert_whole()
        return rows

    def assert_whole(self) -> None:
        with psycopg.connect(self.target_dsn) as conn:
            assert_valid_foreign_keys(conn)
        assert self.indexes() == self.indexes_before
        found = json.loads(self.run("verify", "--json"))
        assert found["equal"], found

    def assert_same_sequences(self) -> None:
        expected = self.sequences("source")
        assert expected, "there is nothing to compare"
        assert self.sequences("target") == expected


def freshtrack(pair: Any, directory: Path, *, rows: int, **sections: dict[str, Any]) -> Rig:
    """The FreshTrack case with its extras, some users left out of the map; nothing runs yet."""
    map_file, settings = directory / "user-mapping.json", directory / "replicator.toml"
    with psycopg.connect(pair.source_dsn) as conn:
        conn.execute(source_schema() + extras_schema())
        generate(conn, rows, seed=rows)
        conn.execute("INSERT INTO append_log SELECT n % 50, 'line ' || n % 7 FROM generate_series(1, 1000) AS n")
        conn.execute("INSERT INTO tickets (payload) SELECT repeat('x', n * 50) FROM generate_series(1, 200) AS n")
        conn.execute("INSERT INTO invoice_numbers (reference) SELECT n FROM generate_series(1, 200) AS n")
        write_map_file(conn, map_file, leave_out=3)
    with psycopg.connect(pair.target_dsn) as conn:
        conn.execute(target_schema() + extras_schema())
    toml = settings_toml(pair.source_dsn, pair.target_dsn, extras=True, listen="127.0.0.1:0", **sections)
    settings.write_text(toml, "utf-8")
    rig = Rig(
        pair.source, pair.target, pair.source_dsn, pair.target_dsn, directory, ["--config", str(settings)],
        map_file=map_file,
    )  # fmt: skip
    rig.run("users", "import", str(map_file))
    return rig


def plain(pair: Any, directory: Path, **settings: str) -> Rig:
    """Without a settings file: all tables of schema public, which are there already. ``settings``: environment."""
    variables = environment(**{"REPLICATOR_METRICS__LISTEN": "127.0.0.1:0", **settings})
    options = ["--source", pair.source_dsn, "--target", pair.target_dsn]
    return Rig(pair.source, pair.target, pair.source_dsn, pair.target_dsn, directory, options, variables)


def assert_clean(workload: Workload) -> None:
    """The writers met nothing but what servers and other writers do to them, and they did write."""
    assert workload.stats.errors == []
    assert workload.stats.transactions > 0
