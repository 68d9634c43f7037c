"""Whatever tables there are and whatever happens to their rows: in the end both sides are equal, row by row."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, given, settings

from tests.conftest import DatabasePair
from tests.properties.plans import Plan, plans
from tests.properties.schemas import Limits
from tests.properties.world import World

COMMON = settings(
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)


def check(pair: DatabasePair, plan: Plan) -> None:
    world = World(pair, plan)
    try:
        for group in plan.groups:
            world.play(group)
        world.stop()
        world.compare_sequences()
    finally:
        world.close()


def test_both_sides_are_equal(pair):
    limits = Limits()

    @settings(COMMON, max_examples=int(os.environ.get("REPLICATOR_TEST_EXAMPLES", "40")), derandomize=True)
    @given(plans(limits))
    def property_(plan: Plan) -> None:
        check(pair, plan)

    property_()
