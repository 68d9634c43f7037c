"""SIGTERM in the middle of anything: exit 0 within 10 s, and a restart goes on where it ended."""

import threading
import time

import psycopg
import pytest

from replicator.demo.freshtrack import Workload
from tests.endurance.process import say
from tests.endurance.rig import assert_clean

WITHIN_S = 10.0
# For the machine, which may be busy with other things.
GRACE_S = 0.5

READINGS = """
CREATE TABLE readings (id bigint PRIMARY KEY, sensor int NOT NULL, note text);
CREATE INDEX ON readings (sensor);
"""
COPYING = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'replicator copy%' AND state = 'active'"
APPLYING = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'replicator apply' AND wait_event_type = 'Lock'"


def terminate(rig):
    seconds = rig.service.terminate(WITHIN_S + GRACE_S)
    say(f"{seconds:.1f} s")


def test_in_the_middle_of_a_snapshot(make_freshtrack):
    rig = make_freshtrack(rows=20_000, snapshot={"workers": 2, "split_above": "256kB"})
    with Workload(rig.writers_dsn, seed=6, rate=60, extras=True, lookup_churn=True) as workload:
        for _ in range(2):
            rig.service.start()
            rig.wait_until(lambda: rig.ask("target", COPYING), "nothing is being copied")
            terminate(rig)
            assert rig.phase() == "copying"
        rig.service.start()
        rig.wait_for_stream()
    rig.wait_until_drained()
    assert_clean(workload)
    rig.assert_equal()


def test_while_a_copy_waits_for_a_lock_on_the_target(make_plain):
    rig = make_plain(READINGS)
    rig.ask("source", "INSERT INTO readings SELECT n, n % 10, 'x' FROM generate_series(1, 1000) AS n")
    rig.service.start()
    with psycopg.connect(rig.target_dsn) as blocker:
        blocker.execute("LOCK TABLE readings IN SHARE MODE")  # reading is allowed, so it is not refused as unreadable
        rig.wait_until(
            lambda: rig.ask("target", COPYING + " AND wait_event_type = 'Lock'"), "the copy does not wait for the lock"
        )
        terminate(rig)
    rig.service.start()
    rig.wait_until_drained()
    rig.assert_same("readings")


def test_in_the_middle_of_a_large_transaction(make_plain):
    rig = make_plain(READINGS)
    rig.service.start()
    rig.wait_for_stream()
    rig.ask("source", "INSERT INTO readings SELECT n, n % 10, md5(n::text) FROM generate_series(1, 200000) AS n")
    rig.wait_until(
        lambda: rig.ask("target", "SELECT 1 FROM pg_stat_progress_copy WHERE relid = 'readings'::regclass"),
        "nothing is being applied",
    )
    terminate(rig)
    assert rig.ask("target", "SELECT count(*) FROM readings") == [(0,)]
    rig.service.start()
    rig.wait_until_drained()
    rig.assert_same("readings")


def test_while_the_applier_waits_for_a_lock(make_plain):
    rig = make_plain(READINGS)
    rig.service.start()
    rig.wait_for_stream()
    with psycopg.connect(rig.target_dsn) as blocker:
        blocker.execute("LOCK TABLE readings")
        rig.ask("source", "INSERT INTO readings VALUES (1, 1, 'x')")
        rig.wait_until(lambda: rig.ask("target", APPLYING), "the applier does not wait for the lock")
        terminate(rig)
    rig.service.start()
    rig.wait_until_drained()
    rig.assert_same("readings")


def test_while_a_start_waits_for_a_lock_on_the_state(make_plain):
    """Before snapshot and stream there are waits too."""
    rig = make_plain(READINGS)
    rig.service.start()
    rig.wait_for_stream()
    terminate(rig)
    with psycopg.connect(rig.target_dsn) as blocker:
        blocker.execute("LOCK TABLE replicator.migration")
        rig.service.start()
        rig.wait_until(lambda: rig.ask("target", APPLYING), "the start does not wait for the lock")
        terminate(rig)
    rig.service.start()
    rig.wait_until_drained()
    rig.assert_same("readings")


@pytest.mark.parametrize("side", ["source", "target"])
def test_while_a_server_hangs(make_plain, side):
    """Connections open, no answer: nothing that waits for one may hold up the stop."""
    rig = make_plain(READINGS)
    rig.service.start()
    rig.wait_for_stream()
    stop = threading.Event()
    writer = threading.Thread(target=trickle, args=(rig.writers_dsn, stop), daemon=True)
    writer.start()
    time.sleep(1.0)
    server = getattr(rig, side)
    server.pause()
    try:
        time.sleep(2.0)
        terminate(rig)
    finally:
        server.resume()
        stop.set()
        writer.join()
    rig.service.start()
    rig.wait_until_drained()
    rig.assert_same("readings")


def trickle(dsn, stop):
    with psycopg.connect(dsn, autocommit=True) as conn:
        number = 0
        while not stop.wait(0.02):
            number += 1
            conn.execute("INSERT INTO readings VALUES (%s, 1, 'trickle')", [number])
