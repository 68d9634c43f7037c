"""A rig behind two proxies: the service and the commands go through them, the test does not."""

from __future__ import annotations

import json
import secrets
import urllib.request
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
