"""Two lanes of one database: settings, a service each, clients that write to tables of both in one transaction."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replicator.config import Settings, load
from tests.conftest import DatabasePair
from tests.endurance.process import Service, environment, say, tail
from tests.endurance.rig import Rig
from tests.faults import writers

TABLES = ("customers", "orders", "readings", "events")
# readings and events are lane 2's: one references a table of lane 1, the other has no key, so that nothing hides what
# is applied twice.
DDL = """
CREATE TABLE customers (id bigserial PRIMARY KEY, name text NOT NULL);
CREATE TABLE orders (id bigserial PRIMARY KEY, customer_id bigint NOT NULL REFERENCES customers, note text NOT NULL);
CREATE TABLE readings (
    id bigserial PRIMARY KEY, customer_id bigint NOT NULL REFERENCES customers, value int NOT NULL);
CREATE TABLE events (n bigint, note text);
CREATE INDEX orders_note ON orders (note);
CREATE INDEX readings_value ON readings (value);
"""
ROWS = """
INSERT INTO customers (name) SELECT 'customer ' || n FROM generate_series(1, 50) n;
INSERT INTO orders (customer_id, note) SELECT 1 + n % 50, 'order ' || n FROM generate_series(1, 500) n;
INSERT INTO readings (customer_id, value) SELECT 1 + n % 50, n FROM generate_series(1, {readings}) n;
INSERT INTO events SELECT n, 'before' FROM generate_series(1, 100) n;
ANALYZE;
"""


class Writer(writers.Writer):
    """A client whose transactions reach into both lanes."""

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        assert self.error is None
        assert self.transactions > 0

    def _write(self, conn: psycopg.Connection[Any]) -> None:
        number = self.transactions
        [(customer,)] = conn.execute("INSERT INTO customers (name) VALUES ('new') RETURNING id").fetchall()
        conn.execute("INSERT INTO orders (customer_id, note) VALUES (%s, %s)", (customer, f"live {number}"))
        conn.execute("INSERT INTO readings (customer_id, value) VALUES (%s, %s)", (customer, number))
        conn.execute("INSERT INTO events VALUES (%s, 'live')", (number,))
        conn.execute("UPDATE readings SET value = value + 1 WHERE id = %s", (self._random.randint(1, 400),))
        if number % 2:
            for table in ("readings", "orders"):
                conn.execute(f"DELETE FROM {table} WHERE customer_id = %s", (customer,))
            conn.execute("DELETE FROM customers WHERE id = %s", (customer,))


@dataclass
class Laned(Rig):
    """``services`` by lane; ``service`` is lane 1's."""

    services: dict[int, Service] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        second = self.directory / "lane_2"
        second.mkdir()
        self.services = {1: self.service, 2: Service(self.options, second, self.environment)}

    @property
    def settings(self) -> Settings:
        return load(Path(self.options[1]))

    def start(self, *lanes: int) -> None:
        for lane in lanes:
            self.services[lane].start("--lane", str(lane))

    def wait_until_streaming(self, *lanes: int) -> None:
        slots = [self.slot_of(lane) for lane in lanes]
        self.wait_until(
            lambda: self.ask_state("SELECT 1 FROM replicator.checkpoint WHERE slot = ANY (%s) AND phase = 'streaming'",
                                   slots) == [(1,)] * len(slots),
            f"lanes {lanes} do not stream", runs=False,
        )  # fmt: skip

    def slot_of(self, lane: int) -> str:
        return self.slot if lane == 1 else f"{self.slot}_{lane}"

    def applied(self, lane: int) -> str:
        [(lsn,)] = self.ask_state("SELECT applied_lsn::text FROM replicator.checkpoint WHERE slot = %s",
                                  self.slot_of(lane))  # fmt: skip
        return str(lsn)

    def phases(self) -> dict[str, str]:
        return dict(self.ask_state("SELECT slot, phase FROM replicator.checkpoint"))

    def mark(self, text: str) -> None:
        """One transaction over both lanes."""
        with psycopg.connect(self.source_dsn) as conn:
            conn.execute("INSERT INTO orders (customer_id, note) SELECT min(id), %s FROM customers", (text,))
            conn.execute("INSERT INTO events VALUES (0, %s)", (text,))

    def arrived(self, lane: int, text: str) -> bool:
        table = "orders" if lane == 1 else "events"
        return bool(self.ask("target", f"SELECT 1 FROM {table} WHERE note = %s", text))

    def wait_for_mark(self, text: str, *lanes: int) -> None:
        for lane in lanes:

            def reached(lane: int = lane) -> bool:
                self.services[lane].require_running()
                return self.arrived(lane, text)

            self.wait_until(reached, f"{text} does not reach lane {lane}", runs=False)

    def status(self, *, exits: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", "--json", exits=exits))
        return found

    def close(self) -> None:
        for service in self.services.values():
            service.close()


def settings_toml(pair: DatabasePair, slot: str, lanes: str, more: str = "") -> str:
    return (
        f'tables = {json.dumps(TABLES)}\n{more}\n[source]\ndsn = "{pair.source_dsn}"\nslot = "{slot}"\n'
        f'[target]\ndsn = "{pair.target_dsn}"\n[metrics]\nlisten = ""\n[lanes]\n{lanes}\n'
    )


@pytest.fixture
def make_lanes(pair: DatabasePair, tmp_path: Path) -> Iterator[Callable[..., Laned]]:
    """``make_lanes(readings=…)`` → both databases and the settings; nothing runs yet."""
    made: list[Laned] = []

    def make(*, readings: int = 500, lanes: str = '2 = ["readings", "events"]', more: str = "") -> Laned:
        for dsn in (pair.source_dsn, pair.target_dsn):
            with psycopg.connect(dsn) as conn:
                conn.execute(DDL)
        with psycopg.connect(pair.source_dsn, autocommit=True) as conn:
            conn.execute(ROWS.format(readings=readings).encode())
        slot, file = f"laned_{secrets.token_hex(4)}", tmp_path / "settings.toml"
        file.write_text(settings_toml(pair, slot, lanes, more))
        rig = Laned(
            pair.source, pair.target, pair.source_dsn, pair.target_dsn, tmp_path, ["--config", str(file)],
            environment(), slot=slot,
        )  # fmt: skip
        made.append(rig)
        return rig

    yield make
    for rig in made:
        rig.close()
        for service in rig.services.values():
            say(tail(service.log, 100))


@pytest.fixture
def laned(make_lanes: Callable[..., Laned]) -> Laned:
    """Both lanes are copied and stream."""
    rig = make_lanes()
    rig.start(1, 2)
    rig.wait_until_streaming(1, 2)
    return rig
