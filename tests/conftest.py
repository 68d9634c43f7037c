"""Servers, fresh databases and the soak option; see `tests.pairs` for where servers come from."""

from __future__ import annotations

import itertools
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from replicator.demo.servers import Server, find_installations
from replicator.stream import receiver, run
from tests.pairs import Servers, TestServer, available_pairs, drop_database, environment_dsns
from tests.template import CopiedServer

_NUMBER = itertools.count(1)
_TOKEN = secrets.token_hex(3)

_PAIRS = available_pairs()
_IDS = ["env"] if environment_dsns() else [f"{source}to{target}" for source, target in _PAIRS]

# For @pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True): the test's ID states the versions.
ALL_PAIRS = [pytest.param(pair, id=name) for pair, name in zip(_PAIRS, _IDS, strict=True)] or [
    pytest.param(None, id="none")
]
# The majors on which schema-level tests run: @pytest.mark.parametrize("database", ALL_MAJORS, indirect=True).
ALL_MAJORS = [pytest.param(major, id=f"pg{major}") for major in sorted({m for p in _PAIRS for m in p})] or [
    pytest.param(None, id="none")
]


# Rooms whose tests take longest: at the end, a file of theirs would keep one process busy while the others are idle.
_FIRST = ("faults", "endurance", "demo", "cli", "security", "slot", "cutover", "lanes", "access", "snapshot")


@dataclass
class DatabasePair:
    """A source and a target server with one fresh, empty database on each."""

    source: Any  # TestServer; a Server in own_servers
    target: Any
    source_dsn: str
    target_dsn: str


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the tests that take minutes too")


def pytest_configure() -> None:
    # A shell ignores Ctrl-C for what it starts in the background, and so would every process that the tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # They start the command line hundreds of times: it need not be compiled each time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _turn(item.path.relative_to(config.rootpath / "tests").parts[0]))
    if config.getoption("--soak"):
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]


def _turn(room: str) -> int:
    return _FIRST.index(room) if room in _FIRST else len(_FIRST)


def no_server(reason: str) -> None:
    """Skip; in CI fail, since there a skipped test would go unnoticed."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason)
    pytest.skip(reason)


def _majors(request: pytest.FixtureRequest) -> tuple[int, int]:
    pair: tuple[int, int] | None = getattr(request, "param", _PAIRS[0] if _PAIRS else None)
    if pair is None:
        no_server("no PostgreSQL server: neither in the environment, nor Docker, nor programs here")
    assert pair is not None
    return pair


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The session's shared servers: ``servers.get(16)``. Nobody may restart or stop them."""
    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture(autouse=True)
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream in this process looks up more often than in real life: most of a test would be waiting for that."""
    monkeypatch.setattr(receiver, "_TAKE_S", 0.02)
    monkeypatch.setattr(receiver, "FEEDBACK_INTERVAL_S", 0.1)
    monkeypatch.setattr(run, "_TAKE_S", 0.02)
    monkeypatch.setattr(run, "_TICK_S", 0.1)


@pytest.fixture
def fresh_database(servers: Servers) -> Iterator[Callable[[TestServer], str]]:
    """``fresh_database(server)`` → DSN of a new empty database, dropped with its slots after the test."""
    made: list[tuple[TestServer, str]] = []

    def create(server: TestServer) -> str:
        name = f"test_{_TOKEN}_{next(_NUMBER)}"
        made.append((server, name))
        return server.create_database(name)

    yield create
    for server, name in reversed(made):
        drop_database(server, name)


@pytest.fixture
def pair(request: pytest.FixtureRequest, servers: Servers, fresh_database: Callable[[TestServer], str]) -> DatabasePair:
    """Fresh databases on the default pair of servers (16 → 18), or on the one it is parametrized with."""
    source, target = servers.pair(*_majors(request))
    return DatabasePair(source, target, fresh_database(source), fresh_database(target))


@pytest.fixture
def database(request: pytest.FixtureRequest, servers: Servers, fresh_database: Callable[[TestServer], str]) -> str:
    """DSN of one fresh database, on the default source or on the major it is parametrized with."""
    major = getattr(request, "param", None)
    if major is None or environment_dsns() is not None:
        source, target = servers.pair(*_majors_default())
        return fresh_database(target if major == target.major else source)
    return fresh_database(servers.get(major))


class SharedPairs:
    """A pair of databases for each pair of majors, kept for the whole session: emptying is quicker than making."""

    def __init__(self, servers: Servers, prefix: str, prepare: Callable[[DatabasePair], None] | None = None) -> None:
        """``prepare`` is called once with each new pair."""
        self._servers, self._prefix, self._prepare = servers, prefix, prepare
        self._made: dict[tuple[int, int], DatabasePair] = {}

    def get(self, request: pytest.FixtureRequest) -> DatabasePair:
        """The pair of the majors that the test is parametrized with, else of the default ones."""
        majors = _majors(request)
        if majors not in self._made:
            source, target = self._servers.pair(*majors)
            name = f"{self._prefix}_{majors[0]}_{majors[1]}"
            for server in (source, target):
                drop_database(server, name)
            pair = DatabasePair(source, target, source.create_database(name), target.create_database(name))
            if self._prepare is not None:
                self._prepare(pair)
            self._made[majors] = pair
        return self._made[majors]

    def close(self) -> None:
        for pair in self._made.values():
            for server, dsn in ((pair.source, pair.source_dsn), (pair.target, pair.target_dsn)):
                drop_database(server, conninfo_to_dict(dsn)["dbname"])


def _majors_default() -> tuple[int, int]:
    if not _PAIRS:
        no_server("no PostgreSQL server: neither in the environment, nor Docker, nor programs here")
    return _PAIRS[0]


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """``start_server(16, settings={…}, durable=True)`` → a private server, removed after the test."""
    started: list[Server] = []

    def start(major: int, **options: Any) -> Server:
        if environment_dsns() is not None:
            pytest.skip("the servers named in the environment are not ours to restart")
        if major not in find_installations():
            no_server(f"no programs of PostgreSQL {major} here: restarting needs the processes themselves")
        server = CopiedServer.start(major, **options)
        started.append(server)
        return server

    yield start
    for server in reversed(started):
        server.remove()


@pytest.fixture
def own_servers(request: pytest.FixtureRequest, start_server: Callable[..., Server]) -> DatabasePair:
    """Like `pair`, on freshly started private servers: for tests that stop, kill or pause them."""
    source_major, target_major = _majors(request)
    source, target = start_server(source_major), start_server(target_major)
    return DatabasePair(source, target, source.create_database("app"), target.create_database("app"))
