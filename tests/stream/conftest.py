"""Streams between two databases of a pair, emptied for every test: that is quicker than making them anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.conftest import _PAIRS, DatabasePair, no_server
from tests.pairs import Servers, TestServer, drop_database
from tests.stream.case import Case

_Made = dict[tuple[int, int], DatabasePair]


@pytest.fixture(scope="session")
def shared_databases(servers: Servers) -> Iterator[_Made]:
    made: _Made = {}
    yield made
    for pair in made.values():
        for server, dsn in ((pair.source, pair.source_dsn), (pair.target, pair.target_dsn)):
            drop_database(server, psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


@pytest.fixture
def pair(request: pytest.FixtureRequest, servers: Servers, shared_databases: _Made) -> DatabasePair:
    majors = getattr(request, "param", _PAIRS[0] if _PAIRS else None)
    if majors is None:
        no_server("no PostgreSQL server: neither in the environment, nor Docker, nor programs here")
    if majors not in shared_databases:
        source, target = servers.pair(*majors)
        name = f"stream_{majors[0]}_{majors[1]}"
        shared_databases[majors] = DatabasePair(source, target, _create(source, name), _create(target, name))
    pair = shared_databases[majors]
    for dsn in (pair.source_dsn, pair.target_dsn):
        _empty(dsn)
    return pair


def _create(server: TestServer, name: str) -> str:
    drop_database(server, name)
    return server.create_database(name)


def _empty(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("""
            SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'
        """)
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
