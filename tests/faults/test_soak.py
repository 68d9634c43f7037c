"""A short soak in every run of the tests; `make soak` goes on for longer."""

import pytest

from replicator.demo.servers import find_installations
from tests.conftest import no_server
from tests.endurance.process import say
from tests.faults.soak.run import soak
from tests.pairs import WANTED_PAIRS, environment_dsns

SECONDS = 180


@pytest.mark.timeout(900)
def test_three_minutes_of_random_faults_loses_and_repeats_nothing(rng):
    if environment_dsns() is not None:
        pytest.skip("the servers named in the environment are not ours to break")
    pairs = [pair for pair in WANTED_PAIRS if find_installations().keys() >= set(pair)][:1]
    if not pairs:
        no_server("no programs of PostgreSQL here: breaking servers needs the processes themselves")
    tally = soak(rng.randrange(1, 2**31), SECONDS, pairs)
    say(tally.to_json())
    assert tally.failure is None, f"{tally.failure}\nagain: {tally.again}"
    assert tally.comparisons > 0
    assert tally.faults.total() > 0
