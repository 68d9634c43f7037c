"""``moving(ddl, …)`` → a replication that is copied and streams; and looks that come soon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from replicator.stream import lookout
from tests.conftest import DatabasePair
from tests.drift.moving import Moving
from tests.stream.conftest import pair, shared_databases

__all__ = ["pair", "shared_databases"]


@pytest.fixture
def moving(pair: DatabasePair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Moving]]:
    monkeypatch.setattr(lookout, "_EVERY_S", 1.0)
    monkeypatch.setattr(lookout, "_AFTER_S", 0.0)
    made: list[Moving] = []

    def make(ddl: str, target_ddl: str | None = None, **options: Any) -> Moving:
        case = Moving(pair, ddl, target_ddl, **options)
        made.append(case)
        case.drain()
        return case

    yield make
    for case in made:
        case.close()
