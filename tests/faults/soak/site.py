"""One round's place: two private servers behind proxies, the rig, its writers, and the service's expected ends."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from pathlib import Path
from random import Random
from typing import Any

import psycopg

from replicator.demo.freshtrack import (
    EXTRA_TABLES,
    TABLES,
    Workload,
    extras_schema,
    generate,
    settings_toml,
    source_schema,
    target_schema,
    write_map_file,
)
from tests.endurance.process import tail
from tests.endurance.rig import Rig
from tests.faults.proxy import Proxy
from tests.faults.soak import load
from tests.faults.soak.tally import Tally
from tests.oracle import assert_same_rows
from tests.template import CopiedServer

ALL_TABLES = (*TABLES, *EXTRA_TABLES, *load.TABLES)
SIGTERM_WITHIN_S = 10.0
_MACHINE_GRACE_S = 10.0  # it may be busy with other things; `tests.endurance.test_sigterm` is stricter
_REMAPPED_WITHIN_S = 60.0


class Site:
    """Made for one round and closed after it."""

    def __init__(self, rng: Random, majors: tuple[int, int], directory: Path, tally: Tally, *, large: bool) -> None:
        self.rng, self.tally, self.directory = rng, tally, directory
        self._stack = contextlib.ExitStack()
        self._seed = rng.randrange(1, 10_000)
        self.writing = False
        self.imported = False  # since the last comparison: rows may wait for their user's ID
        self.users_pending = False
        self.copies: list[subprocess.Popen[str]] = []  # `snapshot --table` commands
        self.armed = ""  # the failpoints of this life of the service
        self.strained = False  # whether a server was out of reach in this life
        self.down = True  # the service is meant not to run
        self.touched: set[str] = set()  # by faults that last
        try:
            self._prepare(majors, large)
        except BaseException:
            self.close()
            raise

    def _prepare(self, majors: tuple[int, int], large: bool) -> None:
        rng = self.rng
        settings = {
            "wal_sender_timeout": rng.choice(("3s", "10s", "60s")),
            # What is larger is sent while it is in progress.
            "logical_decoding_work_mem": rng.choice(("64kB", "1MB", "64MB")),
        }
        self.source = CopiedServer.start(majors[0], settings=settings)
        self._stack.callback(self.source.remove)
        self.target = CopiedServer.start(majors[1])
        self._stack.callback(self.target.remove)
        self.proxies = {
            side: self._stack.enter_context(Proxy(server.port))
            for side, server in (("source", self.source), ("target", self.target))
        }
        source_dsn, target_dsn = self.source.create_database("app"), self.target.create_database("app")
        self.map_file, config = self.directory / "user-mapping.json", self.directory / "replicator.toml"
        with psycopg.connect(source_dsn) as conn:
            conn.execute(source_schema() + extras_schema() + load.SCHEMA)
            generate(conn, rng.choice((2_000, 6_000)), seed=self._seed)
            load.fill(conn, wide_rows=25_000 if large else 500)
            write_map_file(conn, self.map_file, leave_out=rng.choice((0, 3, 40)))
        with psycopg.connect(source_dsn, autocommit=True) as conn:
            conn.execute("ANALYZE")
        with psycopg.connect(target_dsn) as conn:
            conn.execute(target_schema() + extras_schema() + load.SCHEMA)
        toml = settings_toml(
            self.proxies["source"].dsn(source_dsn),
            self.proxies["target"].dsn(target_dsn),
            extras=True,
            listen="127.0.0.1:0",
            snapshot={"workers": 2, "split_above": rng.choice(("256kB", "4MB", "256MB"))},
            stream={"max_batch_rows": rng.choice((200, 2_000, 20_000))},
        )
        _, _, rest = toml.partition("\n")
        config.write_text(f"tables = {json.dumps(ALL_TABLES)}\n{rest}", "utf-8")
        self.rig = Rig(
            self.source, self.target, source_dsn, target_dsn, self.directory, ["--config", str(config)],
            map_file=self.map_file,
        )  # fmt: skip
        self._stack.callback(self.rig.close)
        self.rig.run("users", "import", str(self.map_file))

    def close(self) -> None:
        for process in self.copies:
            process.kill()
        if self.writing:
            with contextlib.suppress(Exception):
                self.stop_writing()
        self._stack.close()

    # ── writers ────────────────────────────────────────────────────────────────────────────────────────

    def start_writing(self) -> None:
        self._seed += 1
        rng = self.rng
        self.workload = Workload(
            self.rig.writers_dsn, seed=self._seed, writers=2, rate=rng.choice((20, 50)), extras=True, lookup_churn=True
        ).start()
        self.ledger = load.Ledger(
            self.rig.writers_dsn, self._seed, rate=rng.choice((20, 50)), giant_rows=rng.choice((2_000, 30_000))
        ).start()
        self.writing = True

    def stop_writing(self) -> None:
        self.writing = False
        self.workload.stop()
        self.ledger.stop()
        self.tally.transactions += self.workload.stats.transactions + self.ledger.commits
        assert not self.workload.stats.errors, self.workload.stats.errors
        assert not self.ledger.errors, self.ledger.errors

    # ── the service ────────────────────────────────────────────────────────────────────────────────────

    def start(self, failpoints: str = "") -> None:
        self.rig.service.start(failpoints=failpoints)
        self.tally.lives += 1
        self.armed, self.strained, self.down = failpoints, bool(self.touched - {"service"}), False

    def kill(self) -> None:
        self.down = True
        if self.rig.service.running:
            self.rig.service.kill()

    def terminate(self) -> None:
        """SIGTERM, which must be answered in time whatever the servers do."""
        self.down = True
        if self.rig.service.running:
            self._wait_for_first_words()
            seconds = self.rig.service.terminate(SIGTERM_WITHIN_S + _MACHINE_GRACE_S)
            self.tally.longest_sigterm_s = max(self.tally.longest_sigterm_s, seconds)

    def _wait_for_first_words(self) -> None:
        """Until it has loaded its modules a signal ends it as it ends any program."""
        deadline = time.monotonic() + 150
        while not self._life().partition("\n")[2] and self.rig.service.running and time.monotonic() < deadline:
            time.sleep(0.05)

    def _life(self) -> str:
        """What the service has logged in this life."""
        return self.rig.service.log.read_text("utf-8", "replace").rpartition("──── life")[2]

    def watch(self) -> None:
        """Start the service again where it was meant to end, or as a supervisor would; fail where it was not."""
        service = self.rig.service
        if self.down or service.running or service.process is None:
            return
        code = service.process.returncode
        why = self._why_it_may_end(code)
        assert why, f"the service has ended: exit code {code}\n{tail(service.log)}"
        self.tally.event(f"service: {why}")
        self.start()

    def _why_it_may_end(self, code: int) -> str:
        life = self._life()
        for part in self.armed.split(","):
            name, _, rest = part.partition("=")
            action = rest.partition("@")[0].partition(":")[0]
            if f"failpoint {name}: {action}" in life and (action, code) in (("kill", -9), ("term", 0), ("reject", 3)):
                return f"{action} at a failpoint"
        reached = any(word in life for word in ("streaming", "taking a snapshot", "snapshot begins", "table copied"))
        if code == 3 and self.strained and not reached and life.count("trying again") >= 5:
            return "gave up on a server that it never reached"
        if code == 3 and "another replicator is already running" in life and (self.strained or self.copies):
            return "somebody else still holds the writer's lock"
        return ""

    # ── comparing ──────────────────────────────────────────────────────────────────────────────────────

    def settle(self) -> None:
        """Faults are over: let everything arrive, with the writers silent, and compare both sides row by row."""
        self.watch()
        if self.armed:
            self.kill()
            self.start()
        if self.writing:
            self.stop_writing()
        rig = self.rig
        if self.users_pending:
            self.import_users()
        rig.wait_until_drained()
        rig.wait_until(lambda: not self.unfinished(), "tables are still being copied")
        for process in self.copies:
            process.communicate(timeout=60)
        self.copies.clear()
        rig.wait_until_drained()
        self.compare()
        rig.wait_until(self._is_healthy, "status says that something is wrong")

    def unfinished(self) -> list[Any]:
        return self.rig.ask("target", "SELECT table_name FROM replicator.table_state WHERE state <> 'copied'")

    def compare(self) -> None:
        deadline = time.monotonic() + (_REMAPPED_WITHIN_S if self.imported else 0)
        while True:
            try:
                counts = self._compare_once()
                break
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
        self.imported = False
        self.tally.comparisons += 1
        self.tally.rows_compared += counts
        self.tally.event("equal", f"{counts} rows, life {self.rig.service.lives} of the service")

    def _compare_once(self) -> int:
        rig = self.rig
        with psycopg.connect(rig.source_dsn) as source, psycopg.connect(rig.target_dsn) as target:
            rows = sum(assert_same_rows(source, target, table) for table in load.TABLES)
        return rows + sum(rig.assert_equal().values())

    def _is_healthy(self) -> bool:
        process = self.rig.popen("status", "--json")
        out, _ = process.communicate(timeout=60)
        return process.returncode == 0 and json.loads(out)["healthy"]

    def look_at_balances(self) -> None:
        """At any moment the target is the source as it was after some transaction: the balances add up."""
        rows = self.rig.ask_state(
            "SELECT sum(a.balance) FROM public.accounts a, replicator.table_state t"
            " WHERE t.table_name = 'accounts' AND t.state = 'copied'"
        )
        assert rows in ([], [(None,)], [(0,)]), f"the target shows half a transaction: {rows}"

    # ── users ──────────────────────────────────────────────────────────────────────────────────────────

    def import_users(self) -> bool:
        """Import everybody known by now; a second import of the same file changes nothing."""
        known = {entry["supabaseUserId"]: entry for entry in json.loads(self.map_file.read_text())["mappings"]}
        fresh = self.directory / "late.json"
        with psycopg.connect(self.rig.source_dsn) as conn:
            write_map_file(conn, fresh, leave_out=0)
        document = json.loads(fresh.read_text())
        known |= {entry["supabaseUserId"]: entry for entry in document["mappings"]}
        document["mappings"] = list(known.values())
        self.map_file.write_text(json.dumps(document))
        process = self.rig.popen("users", "import", str(self.map_file))
        out, err = process.communicate(timeout=120)
        assert process.returncode in (0, 3), f"users import: {process.returncode}\n{out}\n{err}"
        self.imported, self.users_pending = True, process.returncode != 0
        return not self.users_pending

    def pause_service(self) -> None:
        self.rig.service.process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]

    def resume_service(self) -> None:
        if self.rig.service.running:
            self.rig.service.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
