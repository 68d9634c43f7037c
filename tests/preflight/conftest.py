from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql

from tests.conftest import DatabasePair
from tests.preflight.sides import Sides


@pytest.fixture
def sides(pair: DatabasePair) -> Sides:
    return Sides(pair.source_dsn, pair.target_dsn)


@pytest.fixture
def plain_role(pair: DatabasePair) -> Iterator[Callable[..., str]]:
    """``plain_role("target", "REPLICATION")`` → DSN of a new role that owns nothing, dropped after the test."""
    made: list[tuple[str, str]] = []

    def create(side: str, *attributes: str) -> str:
        server, dsn = (pair.source, pair.source_dsn) if side == "source" else (pair.target, pair.target_dsn)
        database = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
        role = f"role_of_{database}"
        server.create_role(role, *attributes)
        made.append((dsn, role))
        return str(server.dsn(database, role))

    yield create
    for dsn, role in made:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
            conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
