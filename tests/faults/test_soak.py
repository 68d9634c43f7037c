"""A short soak in every run of the tests; `make soak` goes on for longer."""

import os

import pytest

from replicator.demo.servers import find_installations
from tests.conftest import no_server
from tests.endurance.process import say
from tests.faults.soak.run import soak
from tests.pairs import WANTED_PAIRS, environment_dsns

SECONDS = 150
SEED = 2026


@pytest.mark.timeout(900)
def test_minutes_of_random_faults_lose_and_repeat_nothing(tmp_path):
    if environment_dsns() is not None:
        pytest.skip("the servers named in the environment are not ours to break")
    pairs = [pair for pair in WANTED_PAIRS if find_installations().keys() >= set(pair)][:1]
    if not pairs:
        no_server("no programs of PostgreSQL here: breaking servers needs the processes themselves")
    seed = int(os.environ.get("REPLICATOR_TEST_SEED") or SEED)
    say(f"REPLICATOR_TEST_SEED={seed}")
    tally = soak(seed, SECONDS, pairs)
    say(tally.to_json())
    assert tally.failure is None, f"{tally.failure}\nagain: {tally.again}"
    assert tally.comparisons > 0
    assert tally.faults.total() > 0
