"""kill -9 at random moments, from the snapshot's first second to the cutover: nothing lost, nothing twice."""

import subprocess
import time

import psycopg
import pytest

from replicator.demo.freshtrack import Workload
from tests.endurance.process import say, tail
from tests.endurance.rig import COMMAND_TIMEOUT_S, assert_clean

# Copying goes in many small parts, so that it lasts and most moments lie in the middle of one.
SNAPSHOT = {"workers": 2, "split_above": "256kB"}


def test_five_kills_lose_and_repeat_nothing(make_freshtrack, rng):
    rig = make_freshtrack(rows=12_000, snapshot=SNAPSHOT)
    with Workload(rig.writers_dsn, seed=2, rate=100, extras=True, lookup_churn=True) as workload:
        rig.service.start()
        kill_during_snapshot(rig, rng, times=2, longest_s=1.5)
        kill_during_stream(rig, rng, times=2, longest_s=1.0)
        kill_service_during_drain(rig, rng, burst=20_000)
    finish(rig, workload)


@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_twenty_five_kills_lose_and_repeat_nothing(make_freshtrack, rng):
    rig = make_freshtrack(rows=300_000, snapshot=SNAPSHOT)
    with Workload(rig.writers_dsn, seed=2, rate=80, extras=True, lookup_churn=True) as workload:
        rig.service.start()
        kill_during_snapshot(rig, rng, times=9, longest_s=5.0)
        kill_during_stream(rig, rng, times=10, longest_s=6.0)
        kill_cutover(rig, rng, times=4)
        kill_service_during_drain(rig, rng, burst=200_000, times=2)
    finish(rig, workload)


def test_a_restart_does_not_wait_for_what_the_dead_service_waited_for(make_plain):
    """Its session holds the writer's lock until the server notices; a statement that waits must not put that off."""
    rig = make_plain("CREATE TABLE t (id int PRIMARY KEY)")
    rig.service.start()
    rig.wait_for_stream()
    with psycopg.connect(rig.target_dsn) as blocker:
        blocker.execute("LOCK TABLE t IN SHARE ROW EXCLUSIVE MODE")
        rig.ask("source", "INSERT INTO t VALUES (1)")
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'replicator%' AND wait_event_type = 'Lock'"
        )
        rig.wait_until(lambda: rig.ask("target", waiting), "the applier does not wait for the lock")
        rig.service.kill()
        rig.service.start()
        rig.wait_until(rig.walsender, "the stream does not go on")
    rig.wait_until_drained()
    rig.assert_same("t")


def finish(rig, workload):
    assert_clean(workload)
    counts = rig.assert_equal()
    rig.assert_same_sequences()
    assert counts["append_log"] > 1_000
    say(
        f"{rig.service.lives} lives of the service; {sum(counts.values())} rows,"
        f" {workload.stats.transactions} transactions; nobody could write for {rig.downtime_s} s;"
        f" memory {rig.service.memory}"
    )


def kill_during_snapshot(rig, rng, *, times, longest_s):
    """The first one within the first second; all of them before the snapshot is done, if it lasts that long."""
    for number in range(times):
        rig.wait_until(lambda: rig.phase() != "new", "the snapshot does not begin")
        time.sleep(rng.uniform(0.0, 1.0 if number == 0 else longest_s))
        say("killed at phase", rig.phase())
        rig.service.kill()
        rig.service.start()


def kill_during_stream(rig, rng, *, times, longest_s):
    """Most of them while it streams, some while it is still starting."""
    for _ in range(times):
        rig.wait_for_stream()
        if rng.random() < 0.8:
            rig.wait_until(rig.walsender, "the stream does not begin")
        time.sleep(rng.uniform(0.1, longest_s))
        say("killed at phase", rig.phase(), "lag", rig.lag_bytes())
        rig.service.kill()
        rig.service.start()


def kill_cutover(rig, rng, *, times):
    """The command dies between freeze and hand-over: the source's writers go on, and it can be run again."""
    for _ in range(times):
        rig.wait_until_near()
        since = rig.clock()
        process = rig.popen("cutover", "--yes")
        while process.poll() is None and "freeze" not in rig.cutover_steps(since):
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.6))
        say("cutover killed at", {step for step, state in rig.cutover_steps(since).items() if state == "running"})
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()


def kill_service_during_drain(rig, rng, *, burst, times=1):
    """A lock on the target makes the drain last until the service is dead; the cutover must finish all the same."""
    rig.wait_until_near()
    file = rig.directory / "cutover.json"
    with psycopg.connect(rig.target_dsn) as blocker:
        blocker.execute("LOCK TABLE append_log IN SHARE ROW EXCLUSIVE MODE")
        rig.ask("source", "INSERT INTO append_log SELECT n, 'burst' FROM generate_series(1, %s) AS n", burst)
        since = rig.clock()
        process = rig.popen("cutover", "--yes", "--max-lag-bytes", str(1 << 40), "--report", str(file))
        try:
            for _ in range(times):
                rig.wait_until(lambda: process.poll() is not None or is_draining(rig, since), "no drain")
                rig.wait_until(lambda: process.poll() is not None or rig.walsender(), "the stream does not go on")
                assert process.poll() is None, process.communicate()
                time.sleep(rng.uniform(0.0, 1.0))
                rig.service.kill()
                assert is_draining(rig, since)
                say("service killed during the drain")
                rig.service.start()
            blocker.rollback()
            out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the cutover does not end\n{tail(rig.service.log)}") from None
        finally:
            process.kill()
    assert process.returncode == 0, f"{out}\n{err}\n{tail(rig.service.log)}"
    rig.cutover_done(file)


def is_draining(rig, since):
    return rig.cutover_steps(since).get("drain") == "running"
