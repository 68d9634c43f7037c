"""`narrow`: a site whose source keeps little WAL for slots, and what moves a slot towards its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replicator.demo.servers import Server
from tests.conftest import ALL_PAIRS, no_server
from tests.pairs import Servers, TestServer
from tests.refusals.conftest import make_site, settled_sites, site, streamed  # noqa: F401 - fixtures
from tests.refusals.site import Site

# In segments of 16 MB: reserved up to 5 behind, extended at 6, then unreserved, and lost at the next checkpoint. The
# server makes one by itself every 4 segments.
KEEP = {
    "max_slot_wal_keep_size": "96MB",
    "max_wal_size": "64MB",
    "min_wal_size": "32MB",
    "checkpoint_completion_target": "0",
    "checkpoint_timeout": "1h",
}


class Narrow(Site):
    """A site on a source server of its own."""

    server: Server

    def fill_segments(self, count: int) -> None:
        """Write WAL that no table takes part in, in another database: the source's may be frozen."""
        with psycopg.connect(self.server.dsn(), autocommit=True) as conn:
            for _ in range(count):
                conn.execute("SELECT pg_logical_emit_message(false, 'filler', 'x'), pg_switch_wal()")

    def set(self, name: str, value: str) -> None:
        with psycopg.connect(self.server.dsn(), autocommit=True) as conn:
            conn.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            conn.execute("SELECT pg_reload_conf()")
        self.wait(lambda: self.slot_sql("SELECT current_setting(%s) = %s", name, value), f"{name} is not {value}")

    def slot_sql(self, statement: str, *parameters: object) -> Any:
        with psycopg.connect(self.server.dsn(), autocommit=True) as conn:
            row = conn.execute(statement, parameters or None).fetchone()
        return row[0] if row else None

    def wal_status(self) -> str | None:
        found = self.slot_sql("SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", self.slot)
        return None if found is None else str(found)

    def push_to(self, wal_status: str) -> None:
        """Write WAL until the slot is there; it must stand still."""
        for _ in range(12):
            self.checkpoint_source()
            self.fill_segments(1)
            if self.wal_status() == wal_status:
                return
        raise AssertionError(f"the slot is {self.wal_status()}")

    def checkpoint_source(self) -> None:
        with psycopg.connect(self.server.dsn(), autocommit=True) as conn:
            conn.execute("CHECKPOINT")

    def settle_slot(self) -> None:
        """Until the slot has gone as far as what is confirmed allows: it follows in steps, one per feedback."""
        seen, since = None, time.monotonic()
        while time.monotonic() - since < 2.5:
            now = self.slot_sql("SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = %s", self.slot)
            if now != seen:
                seen, since = now, time.monotonic()
            time.sleep(0.1)

    def lose_slot(self) -> None:
        """More WAL than the source keeps, and a checkpoint, which removes it."""
        self.fill_segments(10)
        self.checkpoint_source()
        self.wait(lambda: self.wal_status() == "lost", "the slot is not lost")


@pytest.fixture
def make_narrow(
    start_server: Callable[..., Server],
    servers: Servers,
    fresh_database: Callable[[TestServer], str],
    tmp_path: Path,
) -> Iterator[Callable[..., Narrow]]:
    """``make_narrow(major)`` → a filled site; further settings of the source by name."""
    majors = ALL_PAIRS[0].values[0]
    if majors is None:
        no_server("no PostgreSQL server: neither in the environment, nor Docker, nor programs here")
    assert isinstance(majors, tuple)
    target = servers.pair(*majors)[1]
    made: list[Narrow] = []

    def make(major: int, **settings: str) -> Narrow:
        server = start_server(major, settings=KEEP | settings)
        narrow = Narrow(tmp_path, server.create_database("app"), fresh_database(target), "mover")
        narrow.server = server
        made.append(narrow)
        narrow.fill()
        return narrow

    yield make
    for each in made:
        each.close()
