"""Rigs that are taken down after the test; their logs are shown when it failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import DatabasePair
from tests.endurance.conftest import keep, make_freshtrack, make_plain, rng
from tests.endurance.process import say, tail
from tests.faults.rig import Faulty, faulty

__all__ = ["keep", "make_faulty", "make_freshtrack", "make_plain", "rng"]


@pytest.fixture
def make_faulty(pair: DatabasePair, tmp_path: Path) -> Iterator[Callable[..., Faulty]]:
    """``make_faulty(rows=…)`` → a `Faulty` with the writers' tables filled on the source; nothing runs yet."""
    made: list[Faulty] = []

    def make(given: DatabasePair | None = None, *, rows: int = 2000, **settings: str) -> Faulty:
        rig = faulty(given or pair, tmp_path, rows=rows, **settings)
        made.append(rig)
        return rig

    yield make
    for rig in made:
        rig.close()
        for proxy in rig.proxies.values():
            proxy.close()
        say(tail(rig.service.log, 200))
