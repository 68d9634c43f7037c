"""Servers that crash and come back under load: the service recovers by itself, whichever side it was."""

import time

import pytest

from replicator.demo.freshtrack import Workload
from tests.endurance.process import say
from tests.endurance.rig import assert_clean

SIDES = ["target", "source"]


@pytest.mark.parametrize("side", SIDES)
def test_the_service_survives_a_crash_of_a_server(make_freshtrack, rng, side):
    rig = make_freshtrack(rows=3_000)
    survive(rig, rng, side, during_snapshot=0, during_stream=2, longest_s=1.5, rate=100)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("side", SIDES)
def test_the_service_survives_many_crashes_of_a_server(make_freshtrack, rng, side):
    rig = make_freshtrack(rows=150_000, snapshot={"workers": 2, "split_above": "1MB"})
    survive(rig, rng, side, during_snapshot=3, during_stream=8, longest_s=8.0, rate=80)


def survive(rig, rng, side, *, during_snapshot, during_stream, longest_s, rate):
    server = getattr(rig, side)
    with Workload(rig.writers_dsn, seed=3, rate=rate, extras=True, lookup_churn=True) as workload:
        workload.wait_for(20)
        rig.service.start()
        for _ in range(during_snapshot):
            rig.wait_until(lambda: rig.phase() != "new", "no snapshot")
            time.sleep(rng.uniform(0.2, 3.0))
            say("crash at phase", rig.phase())
            server.restart("immediate")
        rig.wait_for_stream()
        for _ in range(during_stream):
            rig.wait_until(lambda: rig.walsender(), "the stream does not go on")
            time.sleep(rng.uniform(0.2, longest_s))
            server.restart("immediate")
            # Longer than a reconnect takes, so that it is not always the connecting that is hit.
            workload.wait_for(workload.stats.transactions + 50)
        rig.wait_until(lambda: rig.walsender(), "the stream does not go on")
    rig.wait_until_drained()
    assert rig.service.lives == 1
    assert_clean(workload)
    counts = rig.assert_equal()
    rig.cutover()
    rig.assert_same_sequences()
    say(f"{sum(counts.values())} rows, {workload.stats.transactions} transactions; memory {rig.service.memory}")
