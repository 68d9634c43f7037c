"""The target transaction: what is committed together, and what is not committed at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg import errors

from replicator.errors import StateError
from replicator.model.change import Op
from replicator.postgres.connection import Connection, connect, query
from replicator.stream.compose import Step
from replicator.stream.refusals import Miscount
from replicator.stream.transaction import Transaction

CHECKPOINT = (b"UPDATE public.checkpoint SET lsn = %s", (7,))


@pytest.fixture
def conn(database: str) -> Iterator[Connection]:
    with connect(database, "target", purpose="test") as conn:
        conn.execute(
            """
            CREATE TABLE public.t (id int PRIMARY KEY, v int);
            INSERT INTO public.t VALUES (1, 1), (2, 2);
            CREATE TABLE public.checkpoint (lsn int);
            INSERT INTO public.checkpoint VALUES (0);
            """
        )
        yield conn


def new(conn: Connection) -> Transaction:
    return Transaction(conn, [], replica_role=True, meanwhile=lambda: None)


def update(key: int, expected: int | None = 1) -> Step:
    return Step(b"UPDATE public.t SET v = 10 WHERE id = %s", (key,), expected, Op.UPDATE, "t")


def stored(dsn: str) -> tuple[int, list[int]]:
    """What another session sees: the checkpoint, and which rows are updated."""
    with connect(dsn, "target", purpose="test") as other:
        [(lsn,)] = query(other, "SELECT lsn FROM public.checkpoint")
        return lsn, [key for (key,) in query(other, "SELECT id FROM public.t WHERE v = 10 ORDER BY id")]


def test_steps_and_checkpoint_at_once(conn, database):
    transaction = new(conn)
    transaction.commit(CHECKPOINT, [update(1), update(2), update(9, expected=None)])
    assert stored(database) == (7, [1, 2])
    assert not transaction.is_open


@pytest.mark.parametrize("key, expected", [(9, 1), (1, 0), (1, 2)])
def test_a_step_that_hits_another_number_of_rows_keeps_all_from_being_committed(conn, database, key, expected):
    transaction = new(conn)
    with pytest.raises(errors.DivisionByZero):
        transaction.commit(CHECKPOINT, [update(2), update(key, expected)])
    assert stored(database) == (0, [])
    assert not transaction.is_open
    with pytest.raises(Miscount):
        transaction.run([update(2), update(key, expected)])
    transaction.rollback()
    transaction.commit(CHECKPOINT, [update(2)])
    assert stored(database) == (7, [2])


def test_without_a_checkpoint_to_store_in(conn, database):
    conn.execute("DELETE FROM public.checkpoint")
    with pytest.raises(StateError, match="the checkpoint is gone"):
        new(conn).commit(CHECKPOINT)


def test_what_ran_before_is_committed_with_the_checkpoint_or_not_at_all(conn, database):
    transaction = new(conn)
    transaction.run([update(1)])
    assert stored(database) == (0, [])
    with pytest.raises(errors.DivisionByZero):
        transaction.commit(CHECKPOINT, [update(9)])
    assert stored(database) == (0, [])
    transaction.run([update(1)])
    transaction.commit(CHECKPOINT)
    assert stored(database) == (7, [1])
