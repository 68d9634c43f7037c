"""The laboratory: one source, two empty targets, FreshTrack data, and the two movers."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from replicator.demo import freshtrack
from replicator.demo.servers import Server, find_installations

SUBSCRIPTION = "native"
# One transaction: a reading comes in, its unit is updated, an event is logged.
_TRANSACTIONS = """
CREATE PROCEDURE public.bench_transactions(n integer) LANGUAGE plpgsql AS $$
DECLARE
    units uuid[] := ARRAY(SELECT id FROM public.units ORDER BY id LIMIT 500);
    organization uuid := (SELECT id FROM public.organizations LIMIT 1);
    unit uuid;
BEGIN
    FOR i IN 1..n LOOP
        unit := units[1 + i % array_length(units, 1)];
        INSERT INTO public.sensor_readings
            (id, unit_id, temperature, humidity, battery, signal_strength, recorded_at, source)
        VALUES (gen_random_uuid(), unit, 3.5, 40, 90, -70, timestamptz '2025-01-01' + i * interval '1 second', 'ble');
        UPDATE public.units SET last_reading_at = now(), last_temperature = i WHERE id = unit;
        INSERT INTO public.event_logs (organization_id, actor_type, event_type, entity_type, hash)
        VALUES (organization, 'system', 'reading', 'unit', md5(i::text));
        COMMIT;
    END LOOP;
END $$
"""


@dataclass
class Lab:
    """Running servers with data; ``settings`` is the path of our settings file."""

    source: Server
    target: Server
    source_dsn: str
    ours_dsn: str
    native_dsn: str
    settings: Path

    def source_lsn(self) -> str:
        return str(self.query(self.source_dsn, "SELECT pg_current_wal_lsn()"))

    def query(self, dsn: str, statement: str) -> Any:
        with psycopg.connect(dsn, autocommit=True) as conn:
            row = conn.execute(statement.encode()).fetchone()
            return row[0] if row else None

    def execute(self, dsn: str, *statements: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            for statement in statements:
                conn.execute(statement.encode())

    def replicator(self, *arguments: str) -> float:
        """Run one of our commands; its seconds from process start to exit."""
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "replicator", "-c", str(self.settings), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "REPLICATOR_METRICS__LISTEN": ""},
        )
        return time.monotonic() - started

    def wait(self, dsn: str, statement: str) -> None:
        """Until ``statement`` gives true."""
        with psycopg.connect(dsn, autocommit=True) as conn:
            while True:
                row = conn.execute(statement.encode()).fetchone()
                if row and row[0]:
                    return
                time.sleep(0.02)


@contextmanager
def lab(directory: Path, *, rows: int, durable: bool, source_major: int = 16, target_major: int = 18) -> Iterator[Lab]:
    """Servers, schemas, ``rows`` rows on the source, a map of all users on our target."""
    majors = find_installations()
    with (
        Server.start(source_major if source_major in majors else max(majors), durable=durable) as source,
        Server.start(target_major if target_major in majors else max(majors), durable=durable) as target,
    ):
        source_dsn = source.create_database("app")
        ours, native = target.create_database("ours"), target.create_database("native")
        with psycopg.connect(source_dsn) as conn:
            conn.execute(freshtrack.source_schema().encode())
            freshtrack.generate(conn, rows, 1)
            conn.execute(_TRANSACTIONS.encode())
            freshtrack.write_map_file(conn, directory / "map.json", leave_out=0)
        for dsn in (ours, native):
            with psycopg.connect(dsn) as conn:
                conn.execute(freshtrack.target_schema().encode())
        settings = directory / "replicator.toml"
        settings.write_text(freshtrack.settings_toml(source_dsn, ours))
        made = Lab(source, target, source_dsn, ours, native, settings)
        tables = ", ".join(f"public.{name}" for name in freshtrack.TABLES)
        made.execute(
            source_dsn,
            "ANALYZE",
            f"CREATE PUBLICATION {SUBSCRIPTION} FOR TABLE {tables} WITH (publish_via_partition_root)",
            f"SELECT pg_create_logical_replication_slot('{SUBSCRIPTION}', 'pgoutput')",
        )
        yield made


def native_subscribe(made: Lab) -> float:
    """CREATE SUBSCRIPTION with its initial copy; seconds until every table is ready."""
    made.execute(made.source_dsn, f"SELECT pg_drop_replication_slot('{SUBSCRIPTION}')")
    started = time.monotonic()
    made.execute(
        made.native_dsn,
        f"CREATE SUBSCRIPTION {SUBSCRIPTION} CONNECTION '{made.source_dsn}' PUBLICATION {SUBSCRIPTION} WITH (binary)",
    )
    made.wait(made.native_dsn, "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel")
    return time.monotonic() - started


def native_pause(made: Lab) -> None:
    made.execute(made.native_dsn, f"ALTER SUBSCRIPTION {SUBSCRIPTION} DISABLE")
    made.wait(made.source_dsn, f"SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{SUBSCRIPTION}'")


def native_catch_up(made: Lab) -> float:
    """Enable the paused subscription; seconds until it has confirmed the source's present position."""
    lsn = made.source_lsn()
    started = time.monotonic()
    made.execute(made.native_dsn, f"ALTER SUBSCRIPTION {SUBSCRIPTION} ENABLE")
    made.wait(
        made.source_dsn,
        f"SELECT replay_lsn >= '{lsn}' FROM pg_stat_replication WHERE application_name = '{SUBSCRIPTION}'",
    )
    return time.monotonic() - started


def native_unsubscribe(made: Lab) -> None:
    made.execute(
        made.native_dsn,
        f"ALTER SUBSCRIPTION {SUBSCRIPTION} DISABLE",
        f"ALTER SUBSCRIPTION {SUBSCRIPTION} SET (slot_name = NONE)",
        f"DROP SUBSCRIPTION {SUBSCRIPTION}",
    )


def children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
