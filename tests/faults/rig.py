"""A rig behind two proxies: the service and the commands go through them, the test does not."""

from __future__ import annotations

import json
import secrets
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from replicator.demo.servers import free_port
from tests.conftest import DatabasePair
from tests.endurance.process import environment, say
from tests.endurance.rig import Rig
from tests.faults.proxy import Proxy
from tests.faults.writers import DDL, ROWS, TABLES, Writer
from tests.oracle import assert_same_rows

# So long nothing is heard before the service looks what is the matter; a third more until it hangs up.
SILENCE_S = 1.5
CUTOVER_WITHIN_S = 150.0


@dataclass
class Faulty(Rig):
    """``proxies`` stand between the service and its servers."""

    proxies: dict[str, Proxy] = field(default_factory=dict)
    marks: int = 0

    def writing(self, **options: Any) -> Writer:
        return Writer(self.writers_dsn, **options)

    def mark(self) -> None:
        """Write a row that no other is like, and wait until it is on the target."""
        self.marks += 1
        self.ask("source", "INSERT INTO journal VALUES (%s, 'mark')", self.marks)
        found = "SELECT 1 FROM journal WHERE n = %s AND note = 'mark'"
        self.wait_until(lambda: self.ask_state(found, self.marks), "a change does not arrive")

    def log_count(self, text: str) -> int:
        return self.service.log.read_text("utf-8", "replace").count(text)

    def wait_for_log(self, text: str, count: int = 1) -> None:
        self.wait_until(lambda: self.log_count(text) >= count, f"the log does not say: {text}")

    def status(self) -> dict[str, Any]:
        """What the service itself serves."""
        url = f"http://{self.environment['REPLICATOR_METRICS__LISTEN']}/status.json"
        with urllib.request.urlopen(url, timeout=10) as answer:
            status: dict[str, Any] = json.load(answer)
            return status

    def finish(self, *, verify: bool = True) -> None:
        """One life, everything there, nothing twice."""
        for proxy in self.proxies.values():
            proxy.resume()
        self.wait_until_drained()
        rows = self.assert_same(*TABLES) if verify else self.compare()
        assert self.service.lives == 1
        say(f"{rows} rows, {self.log_count('trying again')} reconnects, {self.log_count('had no answer')} hung up")

    def compare(self) -> int:
        with psycopg.connect(self.source_dsn) as source, psycopg.connect(self.target_dsn) as target:
            return sum(assert_same_rows(source, target, table) for table in TABLES)

    def is_open(self) -> bool:
        """Whether a new client of the source may write; who died with a lock may hold it for half a minute."""
        try:
            with psycopg.connect(self.writers_dsn, autocommit=True, options="-c lock_timeout=45s") as conn:
                conn.execute("INSERT INTO journal VALUES (0, 'open')")
        except psycopg.errors.ReadOnlySqlTransaction:
            return False
        return True

    def try_to_cut_over(self, step: str, disturb: Callable[[], None]) -> bool:
        """Cut over, and ``disturb`` that while it is about to do ``step``; whether it is finalized.

        If not, the source is open again. Where the cutover could not see to that, it is on record, and ``cutover
        abort`` does.
        """
        self.wait_until_near()
        since = self.clock()
        process = self.popen("cutover", "--yes", failpoints=f"before_step:{step}=hold:1")
        try:
            self.wait_until(
                lambda: self.cutover_steps(since).get(step) == "running" or process.poll() is not None, f"no {step}"
            )
            assert process.poll() is None, process.communicate()
            disturb()
            out, err = process.communicate(timeout=CUTOVER_WITHIN_S)
        finally:
            process.kill()
        say(f"cutover disturbed at {step}: exit code {process.returncode}\n{err}")
        assert process.returncode in (0, 1, 3), (out, err)
        self.wait_until(lambda: self.phase() != "new", "the target does not come back", runs=False)
        if process.returncode == 0 or self.phase() == "cut_over":
            self.run("cutover", "--yes")  # closes the source, if that is left to do
            return True
        if not self.is_open():
            assert self.ask(
                "target", "SELECT 1 FROM replicator.cutover_step WHERE step = 'freeze' AND state <> 'pending'"
            )
            self.run("cutover", "abort")
            assert self.is_open()
        self.mark()
        return False

    def finish_cut_over(self) -> None:
        """Once more undisturbed, unless it is done; both sides are equal."""
        if self.phase() != "cut_over":
            self.wait_until_near()
            self.run("cutover", "--yes")
        assert self.service.wait_for_end() == 0
        assert not self.is_open()
        self.compare()

    def our_sessions(self, side: str) -> dict[str, list[int]]:
        """Process IDs of our sessions on a server by application_name."""
        rows = self.ask(
            side,
            "SELECT application_name, pid FROM pg_stat_activity WHERE application_name LIKE 'replicator %'"
            " AND datname = current_database() AND pid <> pg_backend_pid() ORDER BY 1",
        )
        found: dict[str, list[int]] = {}
        for name, pid in rows:
            found.setdefault(name, []).append(pid)
        return found


def faulty(pair: DatabasePair, directory: Path, *, rows: int, **settings: str) -> Faulty:
    for dsn in (pair.source_dsn, pair.target_dsn):
        with psycopg.connect(dsn) as conn:
            conn.execute(DDL)
    with psycopg.connect(pair.source_dsn) as conn:
        conn.execute(ROWS.format(rows=rows).encode())
    dsns = {"source": pair.source_dsn, "target": pair.target_dsn}
    proxies = {side: Proxy(int(conninfo_to_dict(dsn)["port"])) for side, dsn in dsns.items()}
    options = [word for side, dsn in dsns.items() for word in (f"--{side}", proxies[side].dsn(dsn))]
    slot = f"faulty_{secrets.token_hex(4)}"
    variables = environment(**{
        "REPLICATOR_SOURCE__SLOT": slot,
        "REPLICATOR_METRICS__LISTEN": f"127.0.0.1:{free_port()}",
        "REPLICATOR_SILENCE_S": str(SILENCE_S),
        **settings,
    })  # fmt: skip
    return Faulty(
        pair.source, pair.target, pair.source_dsn, pair.target_dsn, directory, options, variables, slot=slot,
        proxies=proxies,
    )  # fmt: skip
