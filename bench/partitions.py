"""Updates and deletes by ``id`` where the target is partitioned by another column: does it cost more in a large table?

The source's key is (id), the target's (id, recorded_at) in 31 partitions. Rows that the source does not have fill the
target to its size: they are never touched, only in the way.
"""

from __future__ import annotations

import statistics

import psycopg

from bench.data import live
from bench.lab import Lab, execute, value
from bench.options import Options, Say
from bench.peers import ours
from bench.report import Report

BATCHES = (1, 100, 20_000)
_PROCEDURE = """
CREATE PROCEDURE public.bench_by_id(n integer, per_transaction integer, remove boolean) LANGUAGE plpgsql AS $$
DECLARE
    ids uuid[] := ARRAY(SELECT id FROM public.sensor_readings WHERE source = 'bench' ORDER BY id LIMIT n);
BEGIN
    FOR start IN 1..n BY per_transaction LOOP
        IF remove THEN
            DELETE FROM public.sensor_readings WHERE id = ANY(ids[start:start + per_transaction - 1]);
        ELSE
            UPDATE public.sensor_readings SET battery = coalesce(battery, 0) + 1
            WHERE id = ANY(ids[start:start + per_transaction - 1]);
        END IF;
        COMMIT;
    END LOOP;
END $$
"""
# Of this table alone: heap and indexes of all partitions.
_BLOCKS = """
SELECT sum(heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0))::bigint
FROM pg_statio_user_tables WHERE relname LIKE 'sensor_readings%'
"""
_FILL = """
INSERT INTO public.sensor_readings (unit_id, temperature, battery, recorded_at, source)
SELECT (SELECT id FROM public.units LIMIT 1), 3.5, 90,
    timestamptz '2024-01-01' + (i % 900) * interval '1 day' + (i % 86400) * interval '1 s', '{source}'
FROM generate_series(1, {rows}) i
"""


def measure(lab: Lab, options: Options, report: Report, say: Say) -> None:
    """Microseconds and target blocks per change, by table size and batch size; medians over the rounds."""
    case = live(lab, 2_000)
    changed = max(_count(batch, options) for batch in BATCHES) * 2 * options.rounds
    execute(case.source_dsn, _PROCEDURE)
    peer = ours.Stream(case)
    kinds = [(what, batch) for what in ("update", "delete") for batch in BATCHES]
    table = [["rows in the target", *(f"{what}, {batch:,} a batch" for what, batch in kinds)]]
    filled = 0
    try:
        peer.prepare()
        assert peer.target_dsn is not None
        for size in options.partition_rows:
            # Rows to change come by the stream, as in life.
            execute(case.source_dsn, _FILL.format(rows=changed, source="bench"), "ANALYZE public.sensor_readings")
            peer.limit_batches(20_000)
            peer.run()
            with psycopg.connect(peer.target_dsn, autocommit=True) as conn:
                conn.execute("SET session_replication_role = replica")
                conn.execute(_FILL.format(rows=max(0, size - changed - filled), source="in the way").encode())
                conn.execute("VACUUM (ANALYZE) public.sensor_readings")
            filled = max(filled, size - changed)
            cells = []
            for what, batch in kinds:
                cost_us, blocks = _cost(lab, peer, batch, what == "delete", options)
                cells.append(f"{cost_us:.0f} µs, {blocks:.0f} blocks")
                say(f"    {size:>12,} rows  {what}, {batch:>6,} a batch  {cells[-1]}")
            table.append([f"{size:,}", *cells])
            execute(case.source_dsn, "DELETE FROM public.sensor_readings WHERE source = 'bench'")
            peer.limit_batches(20_000)
            peer.run()
    finally:
        peer.clean()
        lab.drop(case.source_dsn)
    report.tables["changes by id on a partitioned target, per change"] = table


def _count(batch: int, options: Options) -> int:
    """Single ones cost most: fewer of them make as good a median."""
    return (
        max(batch, options.partition_changes // 10)
        if batch == 1
        else max(min(batch, 20_000), options.partition_changes)
    )


def _cost(lab: Lab, peer: ours.Stream, batch: int, remove: bool, options: Options) -> tuple[float, float]:
    """Microseconds from the session's start to its end, and blocks that the target looked at, per change."""
    assert peer.target_dsn is not None
    costs, blocks = [], []
    count = _count(batch, options)
    peer.limit_batches(batch)
    for _ in range(options.rounds):
        with psycopg.connect(peer.source_dsn, autocommit=True) as conn:
            conn.execute("SET synchronous_commit = off")
            conn.execute(f"CALL public.bench_by_id({count}, {batch}, {remove})".encode())
            conn.execute("CHECKPOINT")
        lab.calm()
        before = value(peer.target_dsn, _BLOCKS)
        measured = peer.run()
        assert measured.stream_s is not None
        costs.append(measured.stream_s / count * 1e6)
        blocks.append((value(peer.target_dsn, _BLOCKS) - before) / count)
    return statistics.median(costs), statistics.median(blocks)
