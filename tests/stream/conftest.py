"""Streams between two databases of a pair, emptied for every test: that is quicker than making them anew."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.conftest import DatabasePair, SharedPairs
from tests.pairs import Servers
from tests.stream.case import Case


@pytest.fixture(scope="session")
def shared_databases(servers: Servers) -> Iterator[SharedPairs]:
    pairs = SharedPairs(servers, "stream")
    yield pairs
    pairs.close()


@pytest.fixture
def pair(request: pytest.FixtureRequest, shared_databases: SharedPairs) -> DatabasePair:
    pair = shared_databases.get(request)
    for dsn in (pair.source_dsn, pair.target_dsn):
        _empty(dsn)
    return pair


def _empty(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        # Without the function's own timeout, which looks only every 100 ms, and for one session after the other.
        while conn.execute("""
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'
        """).fetchall():
            time.sleep(0.01)
        conn.execute("""
            SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()
        """)
        names = conn.execute("""
            SELECT 'PUBLICATION', pubname::text FROM pg_publication
            UNION ALL SELECT 'SCHEMA', nspname::text FROM pg_namespace
            WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
        """).fetchall()
        for kind, name in names:
            conn.execute(sql.SQL("DROP {} {} CASCADE").format(sql.SQL(kind), sql.Identifier(name)))
        conn.execute("CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC")
        dbname = sql.Identifier(conn.info.dbname)
        conn.execute(sql.SQL("ALTER DATABASE {} RESET ALL; ALTER DATABASE {} OWNER TO postgres").format(dbname, dbname))


@pytest.fixture
def make_case(pair: DatabasePair) -> Iterator[Callable[..., Case]]:
    """``make_case(ddl, …)`` → a `Case` on the pair's databases."""
    made: list[Case] = []

    def make(ddl: str, target_ddl: str | None = None, **options: Any) -> Case:
        case = Case(pair, ddl, target_ddl, **options)
        made.append(case)
        return case

    yield make
    for case in made:
        case.close()


@pytest.fixture
def make_tolerant(make_case: Callable[..., Case]) -> Callable[..., Case]:
    """`make_case`, of a stream that sets refused rows aside."""

    def make(ddl: str, target_ddl: str | None = None, *, stream: dict[str, Any] | None = None, **options: Any) -> Case:
        return make_case(ddl, target_ddl, stream={"on_rejected_row": "quarantine", **(stream or {})}, **options)

    return make


@pytest.fixture
def plain_role() -> str:
    """A name for a target role that may not silence triggers and foreign keys."""
    return f"plain_{secrets.token_hex(6)}"
