"""Fixtures: `site`, a replication that has not begun, and `streamed`, one that is copied and caught up."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.conftest import ALL_PAIRS, DatabasePair, no_server
from tests.pairs import Servers, drop_database
from tests.refusals.site import Site

_NUMBER = itertools.count(1)
_TOKEN = secrets.token_hex(3)


@pytest.fixture
def site(pair: DatabasePair, tmp_path: Path) -> Iterator[Site]:
    """Rows on the source, the same tables on the target, empty; the service has never run."""
    # Slots belong to the whole server, which other tests share: named after the database.
    site = Site(tmp_path, pair.source_dsn, pair.target_dsn, f"slot_{conninfo_to_dict(pair.source_dsn)['dbname']}")
    site.fill()
    yield site
    site.close()


@pytest.fixture
def streamed(settled_sites: list[Site], make_site: Callable[[], Site]) -> Iterator[Site]:
    """Copied and caught up; the service is not running. One that a test has left equal serves the next one."""
    if settled_sites:
        site = settled_sites.pop()
    else:
        site = make_site()
        site.run()
    site.settled = False
    yield site
    if site.settled:
        settled_sites.append(site)


@pytest.fixture(scope="session")
def settled_sites() -> list[Site]:
    return []


@pytest.fixture(scope="session")
def make_site(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Site]]:
    """``make_site()`` → a `Site` as the fixture of that name, on the default pair, for longer than one test."""
    majors = ALL_PAIRS[0].values[0]
    if majors is None:
        no_server("no PostgreSQL server: neither in the environment, nor Docker, nor programs here")
    assert isinstance(majors, tuple)
    pair = servers.pair(*majors)
    made: list[Site] = []

    def make() -> Site:
        name = f"refusals_{_TOKEN}_{next(_NUMBER)}"
        dsns = [server.create_database(name) for server in pair]
        site = Site(tmp_path_factory.mktemp(name), *dsns, f"slot_{name}")
        made.append(site)
        site.fill()
        return site

    yield make
    for site in made:
        site.close()
        for server, dsn in zip(pair, (site.source_dsn, site.target_dsn), strict=True):
            drop_database(server, str(conninfo_to_dict(dsn)["dbname"]))
