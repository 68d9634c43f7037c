"""One pair of databases per pair of servers, with types that stay; every example empties the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import psycopg
import pytest

from tests.conftest import DatabasePair, SharedPairs, _majors_default
from tests.endurance.process import say, tail
from tests.endurance.rig import Rig, plain
from tests.pairs import Servers
from tests.properties.world import empty, prepare
from tests.stream.case import Case


@pytest.fixture(scope="session")
def property_databases(servers: Servers) -> Iterator[SharedPairs]:
    pairs = SharedPairs(servers, "properties", prepare)
    yield pairs
    pairs.close()


@pytest.fixture
def pair(request: pytest.FixtureRequest, property_databases: SharedPairs) -> DatabasePair:
    return property_databases.get(request)


@pytest.fixture
def make_case(pair: DatabasePair) -> Iterator[Callable[..., Case]]:
    """``make_case(ddl, …)`` → a `Case` on the pair's databases, emptied first."""
    made: list[Case] = []

    def make(ddl: str, target_ddl: str | None = None, **options: Any) -> Case:
        for dsn in (pair.source_dsn, pair.target_dsn):
            empty(dsn)
        case = Case(pair, ddl, target_ddl, **options)
        made.append(case)
        return case

    yield make
    for case in made:
        case.close()


@pytest.fixture
def random() -> Random:
    """The seed is printed, and shown if the test fails. The same variable repeats it."""
    seed = int(os.environ.get("REPLICATOR_TEST_SEED") or SystemRandom().randrange(1, 2**31))
    say(f"REPLICATOR_TEST_SEED={seed}")
    return Random(seed)


@pytest.fixture
def overlap_rig(servers: Servers, fresh_database: Callable[..., str], tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """``overlap_rig(DDL)`` → the tables on both sides of fresh databases, and a service that does not run yet."""
    rigs: list[Rig] = []

    def make(ddl: str, **settings: str) -> Rig:
        source, target = servers.pair(*majors)
        pair = DatabasePair(source, target, fresh_database(source), fresh_database(target))
        for dsn in (pair.source_dsn, pair.target_dsn):
            with psycopg.connect(dsn) as conn:
                conn.execute(ddl)
        slot = str(psycopg.conninfo.conninfo_to_dict(pair.source_dsn)["dbname"])
        rig = plain(pair, tmp_path, REPLICATOR_SOURCE__SLOT=slot, **settings)
        rig.slot = slot
        rigs.append(rig)
        return rig

    majors = _majors_default()
    yield make
    for rig in rigs:
        rig.close()
        say(tail(rig.service.log, 100))
