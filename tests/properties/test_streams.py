"""Whatever tables there are and whatever happens to their rows: in the end both sides are equal, row by row."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.conftest import ALL_PAIRS, DatabasePair
from tests.properties.plans import Plan, plans
from tests.properties.schemas import Limits
from tests.properties.values import KINDS
from tests.properties.world import World, kinds_of

EXAMPLES = int(os.environ.get("REPLICATOR_TEST_EXAMPLES") or 1000)


def check(pair: DatabasePair, *, examples: int, fixed: bool) -> None:
    """``fixed``: the same examples every time; else new ones, and a failing one is printed to be repeated."""
    limits = Limits(kinds=kinds_of(pair, KINDS))

    @settings(
        max_examples=examples,
        derandomize=fixed,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
    )
    @given(plans(limits))
    def both_sides_are_equal(plan: Plan) -> None:
        world = World(pair, plan)
        try:
            for group in plan.groups:
                world.play(group)
            world.stop()
            world.compare_sequences()
        finally:
            world.close()

    both_sides_are_equal()


@pytest.mark.timeout(900)  # shrinking a failing example takes its time
def test_both_sides_are_equal(pair):
    check(pair, examples=20, fixed=True)


@pytest.mark.soak
@pytest.mark.timeout(20_000)
@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_both_sides_are_equal_many_times(pair):
    """``REPLICATOR_TEST_EXAMPLES`` says how many."""
    check(pair, examples=EXAMPLES, fixed=False)
