"""Rigs that are taken down after the test; their logs are shown when it failed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import psycopg
import pytest

from tests.conftest import DatabasePair
from tests.endurance.process import say, tail
from tests.endurance.rig import Rig, freshtrack, plain


@pytest.fixture
def keep() -> Iterator[Callable[[Rig], Rig]]:
    """``keep(rig)`` has its service ended after the test."""
    kept: list[Rig] = []

    def add(rig: Rig) -> Rig:
        kept.append(rig)
        return rig

    yield add
    for rig in kept:
        rig.close()
        say(tail(rig.service.log, 200))
        for server, name in ((rig.source, "source"), (rig.target, "target")):
            say(f"… log of the {name}:\n" + "\n".join(server.log_text().splitlines()[-10:]))


@pytest.fixture
def make_freshtrack(own_servers: DatabasePair, tmp_path: Path, keep: Callable[[Rig], Rig]) -> Callable[..., Rig]:
    """``make_freshtrack(rows=…, snapshot={…})`` → a rig on private servers, nothing running yet."""

    def make(pair: DatabasePair | None = None, **options: Any) -> Rig:
        return keep(freshtrack(pair or own_servers, tmp_path, **options))

    return make


@pytest.fixture
def make_plain(own_servers: DatabasePair, tmp_path: Path, keep: Callable[[Rig], Rig]) -> Callable[..., Rig]:
    """``make_plain(DDL)`` makes the tables on both sides; → a rig without a settings file."""

    def make(ddl: str, **settings: str) -> Rig:
        for dsn in (own_servers.source_dsn, own_servers.target_dsn):
            with psycopg.connect(dsn) as conn:
                conn.execute(ddl)
        return keep(plain(own_servers, tmp_path, **settings))

    return make


@pytest.fixture
def rng() -> Random:
    """Random moments; the seed is printed, and shown if the test fails. The same variable repeats it."""
    seed = int(os.environ.get("REPLICATOR_TEST_SEED") or SystemRandom().randrange(1, 2**31))
    say(f"REPLICATOR_TEST_SEED={seed}")
    return Random(seed)
