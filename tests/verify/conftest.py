from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.conftest import DatabasePair
from tests.verify.sides import Sides


@pytest.fixture
def make_sides(pair: DatabasePair) -> Iterator[Callable[..., Sides]]:
    """``make_sides(id_maps={…})``: the pair's databases under these settings."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Sides:
            return stack.enter_context(closing(Sides(pair, **settings)))

        yield make


@pytest.fixture
def sides(make_sides: Callable[..., Sides]) -> Sides:
    return make_sides()
