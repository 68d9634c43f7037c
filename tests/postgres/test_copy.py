"""COPY in binary below psycopg: whole rows out, whole rows in, errors where they belong."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from replicator.model.row import NULL, join, split
from replicator.postgres.connection import Connection, connect
from replicator.postgres.copy import CopyIn, copy_out

OUT = sql.SQL("COPY public.t TO STDOUT (FORMAT binary)")
IN = sql.SQL("COPY public.u FROM STDIN (FORMAT binary)")


@pytest.fixture
def conn(database: str) -> Iterator[Connection]:
    with connect(database, "target", purpose="test") as conn:
        conn.execute("CREATE TABLE public.t (id int, v bytea, n text); CREATE TABLE public.u (LIKE public.t)")
        yield conn


@pytest.mark.parametrize("rows", [0, 1, 2, 5000])
def test_out_and_in(conn, rows):
    conn.execute(
        "INSERT INTO public.t SELECT i, decode(repeat('ff', i % 300), 'hex'), nullif(i % 3, 0)::text"
        f" FROM generate_series(1, {rows}) i"
    )
    taken = list(copy_out(conn, OUT))
    assert len(taken) == rows
    assert all(join(split(row)) == row for row in taken)
    copy = CopyIn(conn, IN)
    for row in taken:
        copy.write(row)
    assert copy.finish() == rows
    assert copy.bytes_written >= sum(map(len, taken))
    [(same,)] = conn.execute("SELECT count(*) FROM public.t JOIN public.u USING (id, v)").fetchall()
    assert same == rows


def test_a_row_larger_than_any_buffer(conn):
    conn.execute("INSERT INTO public.t VALUES (1, decode(repeat('00ff', 8000000), 'hex'))")
    [row] = copy_out(conn, OUT)
    assert split(row)[1][:4] == (16_000_000).to_bytes(4, "big")
    copy = CopyIn(conn, IN)
    copy.write(row)
    assert copy.finish() == 1
    assert conn.execute("SELECT length(v) FROM public.u").fetchall() == [(16_000_000,)]


def test_values_that_look_like_the_frame(conn):
    """A header or trailer inside of a value is a value."""
    conn.execute("INSERT INTO public.t VALUES (-1, '\\xffff'), (-1, decode('5047434f50590aff0d0a00', 'hex')), (-1, '')")
    rows = list(copy_out(conn, OUT))
    assert [split(row)[1][4:] for row in rows] == [b"\xff\xff", b"PGCOPY\n\xff\r\n\0", b""]
    assert split(rows[0])[2] == NULL


def test_a_statement_that_is_refused_at_once(conn):
    for start in (lambda: list(copy_out(conn, sql.SQL("COPY public.nope TO STDOUT"))),
                  lambda: CopyIn(conn, sql.SQL("COPY public.nope FROM STDIN")),
                  lambda: CopyIn(conn, sql.SQL("SELECT 1"))):  # fmt: skip
        with pytest.raises(psycopg.Error):
            start()
        assert conn.execute("SELECT 1").fetchall() == [(1,)]


@pytest.mark.parametrize("after", [0, 200_000])
def test_a_row_that_is_refused(conn, after):
    """The server may say so long before we are through; the session goes on."""
    conn.execute("ALTER TABLE public.u ADD CHECK (id < 5)")
    copy = CopyIn(conn, IN)
    for i in range(10 + after):
        copy.write(join((b"\0\0\0\4" + i.to_bytes(4, "big"), NULL, NULL)))
    with pytest.raises(psycopg.errors.CheckViolation):
        copy.finish()
    assert conn.execute("SELECT count(*) FROM public.u").fetchall() == [(0,)]


def test_cancelling(conn):
    copy = CopyIn(conn, IN)
    copy.write(join((NULL, NULL, NULL)))
    copy.cancel()
    assert conn.execute("SELECT count(*) FROM public.u").fetchall() == [(0,)]


def test_an_error_in_the_middle_of_reading(conn):
    conn.execute("INSERT INTO public.t SELECT i FROM generate_series(1, 2000) i")
    rows = copy_out(conn, sql.SQL("COPY (SELECT 1 / (1500 - id) FROM public.t) TO STDOUT (FORMAT binary)"))
    with pytest.raises(psycopg.errors.DivisionByZero):
        list(rows)
    assert conn.execute("SELECT 1").fetchall() == [(1,)]
