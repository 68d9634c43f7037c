"""The demo: from a live source to a target that has taken over, with the real commands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from types import FrameType
from typing import Final, NoReturn

import psycopg
from psycopg import sql
from rich.console import Console
from rich.text import Text

from replicator.demo.commands import Commands, DemoFailed, Service
from replicator.demo.freshtrack import Workload
from replicator.demo.installations import BIN_VARIABLE
from replicator.demo.screen import Screen, Step
from replicator.demo.stage import LEFT_OUT, Stage, set_stage
from replicator.demo.summary import Facts, show
from replicator.demo.watch import Watch, wall_clock
from replicator.model.lsn import Lsn
from replicator.model.schema import parse_table_name

DEFAULT_ROWS: Final = 200_000
DEFAULT_SECONDS: Final = 20.0
_WRITER_SEED: Final = 2
_TRANSACTIONS_PER_S: Final = 120.0  # leaves two cores room for everything else
_DOWN_S: Final = 1.0  # what a supervisor takes to start a service again
_CATCH_UP_TIMEOUT_S: Final = 120.0
_HAND_OVER_TIMEOUT_S: Final = 20.0
_POLL_S: Final = 0.1


def run(*, rows: int = DEFAULT_ROWS, seconds: float = DEFAULT_SECONDS, keep: bool = False) -> None:
    """Run the demo and print its summary.

    Args:
        rows: size of the source, about.
        seconds: how long to stream under load, with a ``kill -9`` in the middle.
        keep: leave both servers running until Ctrl-C.

    Raises:
        DemoFailed: a command failed, or the two sides differ.
        ConfigError: there are no PostgreSQL programs on this machine.
    """
    _forget_environment()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    screen = Screen(console)
    started = time.monotonic()
    with _ended_by_signals(), set_stage(screen, rows) as stage:
        facts = _Demo(screen, stage, seconds).play()
        facts.total_s = time.monotonic() - started
        show(facts, console)
        if keep:
            _keep(stage, console)
        if faults := list(facts.faults()):
            raise DemoFailed("\n".join(faults))


@dataclass
class _Demo:
    screen: Screen
    stage: Stage
    seconds: float
    facts: Facts = field(default_factory=Facts)

    def play(self) -> Facts:
        stage = self.stage
        self.commands = Commands(stage.directory, stage.settings_path)
        self.service = Service(self.commands)
        self.watch = Watch(stage.settings)
        self.workload = Workload(stage.source_dsn, _WRITER_SEED, rate=_TRANSACTIONS_PER_S, extras=True)
        self.prepare()
        with contextlib.closing(self.service), self.watch, self.workload:
            with self.screen.step("three writers change the source from here on") as step:
                self.workload.wait_for(20)
                step.result = f"{_TRANSACTIONS_PER_S:.0f} transactions/s"
            self.copy()
            begun = time.monotonic()
            self.stream()
            self.verify_live()
            self.cut_over(begun)
        self.look_back()
        return self.facts

    # ── before ─────────────────────────────────────────────────────────────────────────────────────────

    def prepare(self) -> None:
        with self.screen.step("replicator check") as step:
            checks = self.commands.run("check", "--json").json()["checks"]
            counts = {kind: sum(each["status"] == kind for each in checks) for kind in ("pass", "warn")}
            step.result = f"{counts['pass']} passed, {counts['warn']} warnings"
        with self.screen.step("replicator plan") as step:
            plan = self.commands.run("plan", "--json").json()
            step.result = f"{len(plan['tables'])} tables"
        with self.screen.step("replicator users import user-mapping.json") as step:
            added = self.commands.run("users", "import", str(self.stage.map_path), "--json").json()["added"]
            self.facts.left_out = LEFT_OUT
            step.result = f"{added:,} users added, {LEFT_OUT} left out on purpose"

    # ── phase one ──────────────────────────────────────────────────────────────────────────────────────

    def copy(self) -> None:
        with self.screen.step("replicator run: snapshot") as step:
            self.service.start()
            while self.watch.status.phase in ("new", "copying"):
                self.breathe()
                tables = self.watch.status.tables
                done = [table for table in tables if table.state == "copied"]
                step.show(f"{len(done)} of {len(tables)} tables, {sum(table.rows_copied for table in done):,} rows")
            with psycopg.connect(self.stage.target_dsn) as conn:
                row = conn.execute(
                    "SELECT count(*), sum(rows_copied)::bigint,"
                    " extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM replicator.table_state"
                ).fetchone()
            assert row is not None
            self.facts.tables_copied, self.facts.rows_copied, self.facts.copy_s = row
            step.result = f"{self.facts.rows_copied:,} rows in {self.facts.copy_s:.1f} s"
        with self.screen.step("catch up with what was written meanwhile") as step:
            self.catch_up(step)

    # ── phase two ──────────────────────────────────────────────────────────────────────────────────────

    def stream(self) -> None:
        facts, watch = self.facts, self.watch
        watch.peak_lag_seconds, watch.peak_lag_bytes = 0.0, 0
        with self.screen.step("stream under load") as step:
            self.stream_for(self.seconds / 2, step)
            samples = watch.scrape()
            facts.metrics_series = len(samples)
            lag = samples["replicator_lag_seconds", frozenset()]
            step.result = f"{facts.metrics_series} series at /metrics, replicator_lag_seconds {lag:.3f}"
        peak_s, peak_bytes = watch.peak_lag_seconds, watch.peak_lag_bytes
        with self.screen.step("kill -9 the service, start it again") as step:
            killed = time.monotonic()
            self.service.kill()
            watch.begin_life()
            time.sleep(_DOWN_S)
            facts.down_s = time.monotonic() - killed
            self.service.start()
            self.catch_up(step)
            facts.recovery_s = time.monotonic() - killed
            step.result = f"caught up {facts.recovery_s:.1f} s after the kill"
        # What came up while the service was down is not its lag.
        watch.peak_lag_seconds, watch.peak_lag_bytes = peak_s, peak_bytes
        with self.screen.step("stream on") as step:
            self.stream_for(self.seconds / 2 - facts.recovery_s, step)
            step.result = f"{watch.changes.total():,} changes applied so far"

    def stream_for(self, seconds: float, step: Step) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.breathe()
            step.show(self.line())

    def catch_up(self, step: Step) -> None:
        """Until all that is on the source now is on the target; the writers go on meanwhile."""
        with psycopg.connect(self.stage.source_dsn) as conn:
            row = conn.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        assert row is not None
        goal = Lsn.parse(row[0])
        deadline = time.monotonic() + _CATCH_UP_TIMEOUT_S
        while (self.watch.status.applied_lsn or 0) < goal or self.watch.status.phase == "catching_up":
            self.breathe()
            step.show(self.line())
            if time.monotonic() > deadline:
                raise DemoFailed(f"the stream did not catch up within {_CATCH_UP_TIMEOUT_S:.0f} s")

    def verify_live(self) -> None:
        with self.screen.step("replicator verify, while the stream runs") as step:
            answer = self.commands.run("verify", "--json", codes=(0, 1), tick=lambda: self.tick(step))
            found = answer.json()
            self.facts.live_equal, self.facts.live_s = found["equal"], answer.seconds
            self.facts.live_rows = sum(table["source_rows"] for table in found["tables"])
            step.result = f"{self.facts.live_rows:,} rows, {'equal' if found['equal'] else 'DIFFERENT'}"
            self.catch_up(step)

    # ── cutover ────────────────────────────────────────────────────────────────────────────────────────

    def cut_over(self, begun: float) -> None:
        facts = self.facts
        path = self.stage.directory / "cutover.json"
        status, refused = self.watch.status, self.workload.stats.rejected
        facts.lag_now_s, facts.lag_now_bytes = status.lag_seconds or 0.0, status.lag_bytes or 0
        facts.lag_peak_s, facts.lag_peak_bytes = self.watch.peak_lag_seconds, self.watch.peak_lag_bytes
        with self.screen.step("replicator cutover") as step:
            self.commands.run("cutover", "--yes", "--report", str(path), tick=lambda: step.show(self.cutover_line()))
            facts.stream_s = time.monotonic() - begun
            code = self.service.wait(_HAND_OVER_TIMEOUT_S)
            facts.report = json.loads(path.read_text("utf-8"))
            facts.downtime_report_s = facts.report["write_downtime_seconds"]
            step.result = f"writers waited {facts.downtime_report_s:.2f} s; the service ended with exit code {code}"
        stats = self.workload.stop()
        if code:
            raise DemoFailed(f"the service ended with exit code {code} after the cutover")
        if stats.errors:
            raise DemoFailed(f"a writer met an error of its own: {type(stats.errors[0]).__name__}")
        facts.transactions, facts.written = stats.transactions, stats.changes
        facts.refused = stats.rejected - refused
        facts.applied = self.watch.changes
        [finalize] = [each for each in facts.report["steps"] if each["name"] == "finalize"]
        handed_over = datetime.fromisoformat(finalize["finished_at"]).timestamp()
        facts.downtime_writers_s = handed_over - wall_clock(stats.last_commit)

    def cutover_line(self) -> str:
        return ", ".join(f"{each.step} {each.state}" for each in self.watch.status.cutover if each.state == "running")

    # ── after ──────────────────────────────────────────────────────────────────────────────────────────

    def look_back(self) -> None:
        facts = self.facts
        with self.screen.step("replicator verify, once more") as step:
            facts.final = self.commands.run("verify", "--json", codes=(0, 1)).json()
            step.result = "equal" if facts.final["equal"] else "DIFFERENT"
        with self.screen.step("replicator users status") as step:
            facts.users = self.commands.run("users", "status", "--json").json()
            step.result = f"{facts.users['unmapped_ids']} source IDs without a target ID"
        with psycopg.connect(self.stage.source_dsn) as source, psycopg.connect(self.stage.target_dsn) as target:
            for name in facts.report["sequences"]:
                facts.sequences[name] = _position(source, name), _position(target, name)
            row = target.execute("SELECT count(*) FROM public.trigger_audit").fetchone()
            assert row is not None
            facts.triggers_fired = row[0]

    # ── meanwhile ──────────────────────────────────────────────────────────────────────────────────────

    def breathe(self) -> None:
        """Wait a moment; raise DemoFailed if the service has ended."""
        time.sleep(_POLL_S)
        self.service.require_running()

    def tick(self, step: Step) -> None:
        self.service.require_running()
        step.show(self.line())

    def line(self) -> str:
        status = self.watch.status
        written = self.workload.stats.changes.total()
        return (
            f"{written:,} changes written, {self.watch.changes.total():,} applied, lag {status.lag_seconds or 0:.2f} s"
        )


def _position(conn: psycopg.Connection, name: str) -> int:
    """What the sequence gave out last, 0 if nothing yet."""
    query = sql.SQL("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {}")
    row = conn.execute(query.format(sql.Identifier(*parse_table_name(name)))).fetchone()
    assert row is not None
    return int(row[0])


def _keep(stage: Stage, console: Console) -> None:
    """Say how to look around, and wait for Ctrl-C."""
    lines = f"""
both servers run until Ctrl-C; then everything is removed

  source    psql '{stage.source_dsn}'
  target    psql '{stage.target_dsn}'
  files     {stage.directory}: settings, service.log, cutover.json, what each command printed

  replicator -c {stage.settings_path} status
  replicator -c {stage.settings_path} verify
  replicator -c {stage.settings_path} users status
  replicator -c {stage.settings_path} teardown --keep-id-map
"""
    console.print(Text(lines), soft_wrap=True)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


def _forget_environment() -> None:
    """The user's settings and libpq's variables are meant for other servers than ours."""
    for name in list(os.environ):
        if name.startswith(("REPLICATOR_", "PG")) and name != BIN_VARIABLE:
            del os.environ[name]


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP clean up as Ctrl-C does."""

    def end(signum: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signum)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
