"""The databases that are moved: FreshTrack's schema and sample data, and more of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench.lab import Lab, execute, user_tables
from bench.peers import Case
from bench.peers.ours import settings_toml
from replicator.demo import freshtrack

# Python makes this many rows; the server multiplies sensor_readings from there on, which is faster.
_MADE_ROWS = 40_000
_TENANT_TABLE = """
CREATE TABLE public.{name} (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    unit_id uuid NOT NULL REFERENCES public.units (id) ON DELETE CASCADE,
    user_id uuid NOT NULL,
    temperature numeric(7,2),
    note text,
    recorded_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON public.{name} (unit_id, recorded_at);
CREATE INDEX ON public.{name} (user_id);
INSERT INTO public.{name} (unit_id, user_id, temperature, note, recorded_at)
SELECT u.id, p.user_id, (i % 900) / 10.0, 'checked by hand, door closed, no. ' || i,
       timestamptz '2025-01-01' + i * interval '37 s'
FROM generate_series(1, {rows}) i
JOIN (SELECT id, row_number() OVER () n, count(*) OVER () c FROM public.units) u ON u.n = 1 + i % u.c
JOIN (SELECT user_id, row_number() OVER () n, count(*) OVER () c FROM public.profiles) p ON p.n = 1 + i % p.c;
"""
_MORE_READINGS = """
INSERT INTO public.sensor_readings (unit_id, device_id, temperature, humidity, battery, signal_strength, raw_payload,
    recorded_at, received_at, source)
SELECT unit_id, device_id, temperature, humidity, battery, signal_strength, raw_payload,
    recorded_at, received_at, source
FROM (SELECT * FROM public.sensor_readings LIMIT {sample}) r, generate_series(1, {times}) LIMIT {rows}
"""
WIDE_TABLE = """
CREATE TABLE public.wide_records (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    body text NOT NULL,
    {columns}
);
ALTER TABLE public.wide_records ALTER body SET STORAGE EXTERNAL;
""".format(
    columns=", ".join(
        [f"n{i} integer" for i in range(8)]
        + [f"t{i} varchar(40)" for i in range(8)]
        + [f"m{i} numeric(12,3)" for i in range(5)]
        + [f"at{i} timestamptz(3)" for i in range(4)]
        + [f"b{i} boolean" for i in range(2)]
        + ["u0 uuid"]
    )
)


@dataclass(frozen=True, slots=True)
class Database:
    """A source database, ready to be moved."""

    case: Case
    rows: int


def dominant(lab: Lab, rows: int, workers: int) -> Database:
    """FreshTrack with about ``rows`` rows, nearly all of them in ``sensor_readings``; the same shape on both sides."""
    dsn, map_file = _freshtrack(lab, "dominant", rows)
    return _database(lab, dsn, map_file, workers)


def many(lab: Lab, rows: int, tables: int, workers: int) -> Database:
    """FreshTrack, and ``tables`` more of the same size with user IDs in them, ``rows`` rows in all."""
    dsn, map_file = _freshtrack(lab, "many", 2_000)
    names = [f"checks_{number:03}" for number in range(tables)]
    execute(dsn, *(_TENANT_TABLE.format(name=name, rows=max(1, rows // tables)) for name in names))
    return _database(lab, dsn, map_file, workers, user_columns=[f"{name}.user_id" for name in names])


def live(lab: Lab, rows: int, *, extra_schema: str = "", extra_tables: Sequence[str] = ()) -> Case:
    """For streams: the target has its own shape, ``sensor_readings`` in monthly partitions, and the wide table.

    ``extra_schema`` makes ``extra_tables`` on both sides.
    """
    dsn = lab.new_source("live")
    map_file = lab.directory / "live.json"
    with psycopg.connect(dsn) as conn:
        conn.execute(freshtrack.source_schema().encode())
        conn.execute((WIDE_TABLE + extra_schema).encode())
        freshtrack.generate(conn, rows, 1)
        freshtrack.write_map_file(conn, map_file, leave_out=0)
    execute(dsn, "VACUUM (ANALYZE)")
    schema = lab.directory / "target.sql"
    schema.write_text(freshtrack.target_schema() + WIDE_TABLE + extra_schema)
    tables = [*freshtrack.TABLES, "wide_records", *extra_tables]
    return Case(lab, dsn, tables, settings_toml(dsn, tables), map_file, schema=schema)


def _freshtrack(lab: Lab, name: str, rows: int) -> tuple[str, Path]:
    """Sample data without Supabase's schema auth, which the other peers would copy too and we would not."""
    dsn = lab.new_source(name)
    map_file = lab.directory / f"{name}.json"
    made = min(rows, _MADE_ROWS)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(freshtrack.source_schema().encode())
        freshtrack.generate(conn, made, 1)
        freshtrack.write_map_file(conn, map_file, leave_out=0)
        conn.execute("DROP SCHEMA auth CASCADE")
        conn.execute("SET session_replication_role = replica")
        more = rows - made
        if more > 0:
            times = 1 + more // (made // 4)
            conn.execute(_MORE_READINGS.format(sample=made // 4, times=times, rows=more).encode())
    return dsn, map_file


def _database(lab: Lab, dsn: str, map_file: Path, workers: int, user_columns: list[str] | None = None) -> Database:
    execute(dsn, "VACUUM (ANALYZE)")
    tables = user_tables(dsn)
    settings = settings_toml(dsn, tables, user_columns=user_columns or ())
    with psycopg.connect(dsn) as conn:
        row = conn.execute(
            "SELECT sum(reltuples)::bigint FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        ).fetchone()
    assert row is not None
    return Database(Case(lab, dsn, tables, settings, map_file, workers), int(row[0]))
