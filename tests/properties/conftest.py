"""One pair of databases per pair of servers, with types that stay; every example empties the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import _PAIRS, DatabasePair, no_server
from tests.pairs import Servers, drop_database
from tests.properties.world import empty, prepare
from tests.stream.case import Case

_Made = dict[tuple[int, int], DatabasePair]


@pytest.fixture(scope="session")
def property_databases(servers: Servers) -> Iterator[_Made]:
    made: _Made = {}
    yield made
    for pair in made.values():
        for server, dsn in ((pair.source, pair.source_dsn), (pair.target, pair.target_dsn)):
            drop_database(server, psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


@pytest.fixture
def pair(request: pytest.FixtureRequest, servers: Servers, property_databases: _Made) -> DatabasePair:
    majors = getattr(request, "param", _PAIRS[0] if _PAIRS else None)
    if majors is None:
        no_server("no PostgreSQL server: neither in the environment, nor Docker, nor programs here")
    if majors not in property_databases:
        source, target = servers.pair(*majors)
        name = f"properties_{majors[0]}_{majors[1]}"
        for server in (source, target):
            drop_database(server, name)
        made = DatabasePair(source, target, source.create_database(name), target.create_database(name))
        prepare(made)
        property_databases[majors] = made
    return property_databases[majors]


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
