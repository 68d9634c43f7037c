"""Snapshot, live writers and cutover on every pair of servers: nothing missing, nothing too much, nothing changed."""

import json
import time

import pytest

from replicator.demo.freshtrack import EXTRA_TABLES, TABLES, Workload
from tests.conftest import ALL_PAIRS
from tests.endurance.process import say
from tests.endurance.rig import assert_clean


def test_a_written_database_moves_whole(make_freshtrack):
    move(make_freshtrack(rows=3_000), seconds=3, rate=120)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("own_servers", ALL_PAIRS, indirect=True)
def test_a_database_under_a_minute_of_load_moves_whole(make_freshtrack):
    move(make_freshtrack(rows=60_000), seconds=60, rate=150)


def move(rig, *, seconds, rate):
    """The writers go on until the freeze shuts them out."""
    with Workload(rig.writers_dsn, seed=1, rate=rate, extras=True, lookup_churn=True) as workload:
        rig.service.start()
        workload.wait_for(20)
        rig.wait_for_stream()
        time.sleep(seconds)
        found = json.loads(rig.run("verify", "--json"))
        assert found["equal"], found
        rig.wait_until_near()
        report = rig.cutover()
        committed = workload.stats.transactions
        time.sleep(0.5)
        assert workload.stats.transactions == committed, "somebody wrote after the cutover"
    assert_clean(workload)
    assert workload.stats.rejected > 0
    assert report["writes_after_fence"] == 0
    assert report["verification"]["equal"]
    assert report["warnings"] == [warning for warning in report["warnings"] if "unmapped" in warning]

    counts = rig.assert_equal()
    assert set(counts) == {*TABLES, *EXTRA_TABLES}
    rig.assert_same_sequences()
    assert_target_takes_writes(rig)
    say(
        f"{sum(counts.values())} rows, {workload.stats.transactions} transactions,"
        f" {workload.stats.changes.total()} changes; nobody could write for {rig.downtime_s} s;"
        f" memory {rig.service.memory}"
    )


def assert_target_takes_writes(rig):
    """New keys come behind all keys that the source has given out."""
    for table, column in (("tickets", "payload"), ("invoice_numbers", "reference")):
        [(highest,)] = rig.ask("source", f"SELECT max(id) FROM {table}")
        [(new,)] = rig.ask("target", f"INSERT INTO {table} ({column}) VALUES ('first') RETURNING id")
        assert new > highest
