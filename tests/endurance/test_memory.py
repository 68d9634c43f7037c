"""Memory stays flat: giant transactions, big tables with wide rows, a target that stands still under load."""

import time

import pytest

from replicator.demo.freshtrack import Workload
from tests.endurance.process import say
from tests.endurance.rig import assert_clean

LIMIT = 300 << 20

READINGS = """
CREATE TABLE readings (id bigint PRIMARY KEY, sensor int NOT NULL, value numeric(7,2), note text, at timestamptz);
CREATE INDEX ON readings (sensor, at);
"""
DOCUMENTS = "CREATE TABLE documents (id bigint PRIMARY KEY, body text NOT NULL)"


def test_one_large_transaction(make_plain):
    large_transaction(make_plain(READINGS), rows=150_000)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_one_transaction_of_a_million_rows(make_plain):
    large_transaction(make_plain(READINGS), rows=1_000_000)


def large_transaction(rig, *, rows):
    """Inserted, updated and in part deleted, all in one: applied in parts, seen whole or not at all."""
    rig.ask("source", "INSERT INTO readings SELECT -n, 1, 1, 'before', now() FROM generate_series(1, 100) AS n")
    rig.service.start()
    rig.wait_for_stream()
    rig.ask(
        "source",
        f"""
        DO $$ BEGIN
            INSERT INTO readings SELECT n, n % 500, n % 997 / 10.0, md5(n::text), now()
            FROM generate_series(1, {rows}) AS n;
            UPDATE readings SET value = value + 1 WHERE id % 10 = 0;
            DELETE FROM readings WHERE id % 20 = 7;
        END $$
        """,
    )
    began = time.monotonic()
    seen = set()

    def applied():
        [(count,)] = rig.ask("target", "SELECT count(*) FROM readings")
        seen.add(count)
        return count > 100

    rig.wait_until(applied, "the transaction does not arrive")
    seconds = time.monotonic() - began
    assert len(seen) == 2, f"parts of the transaction could be seen: {seen}"
    rig.wait_until_drained()
    say(f"{rows} rows in {seconds:.1f} s; memory {rig.service.memory}")
    assert rig.service.memory.peak_with_children < LIMIT
    rig.assert_same("readings")


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_table_of_500_mb_with_wide_rows(make_plain):
    """Copied by several processes; all of them together stay below the limit. A few values have megabytes."""
    rig = make_plain(DOCUMENTS)
    body = "(SELECT string_agg(md5(random()::text || i), '') FROM generate_series(n, n + {}) AS i)"
    for first in range(0, 120_000, 20_000):
        rig.ask(
            "source",
            f"INSERT INTO documents SELECT n, {body.format(130)} FROM generate_series({first}, {first + 19_999}) AS n",
        )
    rig.ask("source", f"INSERT INTO documents SELECT -n, {body.format(130_000)} FROM generate_series(1, 5) AS n")
    rig.ask("source", "ANALYZE documents")
    [(size,)] = rig.ask("source", "SELECT pg_table_size('documents')")
    assert size > 500_000_000
    began = time.monotonic()
    rig.service.start()
    rig.wait_for_stream()
    say(f"{size / 1e6:.0f} MB in {time.monotonic() - began:.1f} s; memory {rig.service.memory}")
    rig.wait_until_drained()
    rig.assert_same("documents")
    say(f"memory {rig.service.memory}")
    assert rig.service.memory.peak < LIMIT
    assert rig.service.memory.peak_with_children < LIMIT


def test_a_target_that_stands_still(make_freshtrack, own_servers):
    stand_still(make_freshtrack(rows=2_000), timeout_s=6, pause_s=9, rate=150)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_target_that_stands_still_for_two_minutes(make_freshtrack):
    """Longer than the service waits for an answer: it connects anew, again and again, until there is one."""
    stand_still(make_freshtrack(rows=20_000), timeout_s=10, pause_s=120, rate=200, connects_anew=True)


def stand_still(rig, *, timeout_s, pause_s, rate, connects_anew=False):
    """The queue fills and reading stops, but the source still hears from us: it does not end the connection."""
    rig.ask("source", f"ALTER SYSTEM SET wal_sender_timeout = '{timeout_s}s'")
    rig.ask("source", "SELECT pg_reload_conf()")
    with Workload(rig.writers_dsn, seed=5, rate=rate, extras=True, lookup_churn=True) as workload:
        rig.service.start()
        rig.wait_for_stream()
        rig.wait_until(lambda: rig.walsender(), "no WAL sender")
        workload.wait_for(20)
        before = rig.walsender()
        rig.target.pause()
        try:
            deadline = time.monotonic() + pause_s
            while time.monotonic() < deadline:
                rig.service.require_running()
                assert connects_anew or rig.walsender() == before, "the WAL sender has changed"
                time.sleep(0.5)
        finally:
            rig.target.resume()
        [(behind,)] = rig.ask("source", "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint"
                              " FROM pg_replication_slots")  # fmt: skip
        workload.wait_for(workload.stats.transactions + 20)
    rig.wait_until_drained()
    assert (rig.walsender() == before) is not connects_anew, "the WAL sender has changed, or has not"
    assert "terminating walsender" not in rig.source.log_text()
    assert_clean(workload)
    rig.assert_equal()
    say(f"{behind / 1e6:.1f} MB of WAL behind after {pause_s} s; memory {rig.service.memory}")
    assert rig.service.memory.peak_with_children < LIMIT
