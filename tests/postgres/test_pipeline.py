"""Prepared statements in one round trip, below psycopg."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import errors, pq

from replicator.postgres.connection import Connection, connect, query
from replicator.postgres.copy import run_simple
from replicator.postgres.pipeline import Pipeline

INSERT = b"INSERT INTO public.t VALUES (%s, %s)"


@pytest.fixture
def conn(database: str) -> Iterator[Connection]:
    with connect(database, "target", purpose="test") as conn:
        conn.execute('CREATE TABLE public.t (id int PRIMARY KEY, "at%s" timestamptz)')
        yield conn


def rows(conn: Connection) -> list[int]:
    return [number for (number,) in query(conn, "SELECT id FROM public.t ORDER BY id")]


def prepared(conn: Connection) -> int:
    [(count,)] = query(conn, "SELECT count(*) FROM pg_catalog.pg_prepared_statements")
    return int(count)


def test_each_statement_tells_how_many_rows_it_has_hit(conn):
    now = dt.datetime.now(dt.UTC)
    pipeline = Pipeline(conn)
    statements = [
        (b"BEGIN", ()),
        (INSERT, (1, now)),
        (b"INSERT INTO public.t SELECT * FROM pg_catalog.generate_series(2, 4)", ()),
        (b'UPDATE public.t SET "at%%s" = %s WHERE id > %s', (now, 2)),
        (b"DELETE FROM public.t WHERE id = 77", ()),
        (b"COMMIT", ()),
    ]
    assert pipeline.run(statements) == [0, 1, 3, 2, 0, 0]
    assert rows(conn) == [1, 2, 3, 4]
    assert query(conn, 'SELECT id FROM public.t WHERE "at%%s" = %s', now) == [(1,), (3,), (4,)]


def test_a_statement_is_prepared_once_per_types_of_its_parameters(conn):
    pipeline = Pipeline(conn)
    for number in range(5):
        pipeline.run([(INSERT, (number, None))])
    assert prepared(conn) == 1
    pipeline.run([(INSERT, ("70000", None)), (INSERT, ("70001", None))])
    assert rows(conn) == [0, 1, 2, 3, 4, 70000, 70001]
    assert prepared(conn) == 2


def test_behind_an_error_nothing_is_run(conn):
    pipeline = Pipeline(conn)
    with pytest.raises(errors.UniqueViolation):
        pipeline.run([(b"BEGIN", ()), (INSERT, (1, None)), (INSERT, (1, None)), (INSERT, (2, None)), (b"COMMIT", ())])
    assert conn.info.transaction_status == pq.TransactionStatus.INERROR
    run_simple(conn, b"ROLLBACK")
    assert rows(conn) == []
    # What was prepared in front of the error stays good, and what was not is prepared again.
    assert pipeline.run([(b"BEGIN", ()), (INSERT, (2, None)), (b"COMMIT", ())]) == [0, 1, 0]
    assert rows(conn) == [2]


def test_a_statement_that_cannot_be_prepared(conn):
    pipeline = Pipeline(conn)
    for _ in range(2):
        with pytest.raises(errors.UndefinedTable):
            pipeline.run([(b"SELECT 1", ()), (b"DELETE FROM public.nowhere", ())])
    conn.execute("CREATE TABLE public.nowhere ()")
    assert pipeline.run([(b"SELECT 1", ()), (b"DELETE FROM public.nowhere", ())]) == [1, 0]


def test_more_than_the_sockets_hold_in_both_directions(conn):
    """Neither side may wait for the other to read."""
    pipeline = Pipeline(conn)
    text = "x" * 1_000_000
    assert pipeline.run([(b"SELECT %s::text", (text,))] * 30) == [1] * 30


def test_a_session_that_is_ended_in_the_middle(conn, database):
    pipeline = Pipeline(conn)
    with pytest.raises(psycopg.OperationalError):
        pipeline.run([(b"BEGIN", ()), (b"SELECT pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid())", ()),
                      (INSERT, (1, None)), (b"COMMIT", ())])  # fmt: skip
    with pytest.raises(psycopg.OperationalError):
        pipeline.run([(b"SELECT 1", ())])
    with connect(database, "target", purpose="test") as other:
        assert rows(other) == []
