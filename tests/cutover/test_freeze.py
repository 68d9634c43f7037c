"""The freeze on real servers: who is held off, who is not, and how the source is found afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import pytest

from replicator.demo.servers import Server
from replicator.errors import Refused
from replicator.postgres.connection import Connection, connect
from replicator.source.freeze import (
    Freeze,
    cancel_exclusive_waiters,
    load_blockers,
    load_read_only,
    may_store_read_only,
    roles_of_their_own_mind,
    store_read_only,
    tables_not_lockable,
    terminate_others,
)
from tests.conftest import ALL_MAJORS

TABLES = [("public", "a"), ("public", "p")]
SCHEMA = """
CREATE TABLE public.a (id int PRIMARY KEY, note text);
CREATE TABLE public.p (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE public.p_rest PARTITION OF public.p DEFAULT;
CREATE TABLE public.elsewhere (id int);
INSERT INTO public.a VALUES (1, 'one');
GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;
"""


@pytest.fixture
def source(database: str) -> Iterator[Connection]:
    conn = connect(database, "source", purpose="test")
    conn.execute(SCHEMA)
    yield conn
    conn.close()


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as workers:
        yield workers


@pytest.fixture
def freeze(database: str, source: Connection, workers: ThreadPoolExecutor) -> Iterator[Freeze]:
    conn = connect(database, "source", purpose="cutover freeze")
    freeze = Freeze(conn, TABLES)
    yield freeze
    freeze.release()


def soon() -> float:
    return time.monotonic() + 20


def write(dsn: str, statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for statement in statements.split("; "):
            conn.execute(statement.encode())


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def waiting(conn: Connection) -> int:
    [(count,)] = conn.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchall()
    return int(count)


WRITES = [
    "INSERT INTO public.a VALUES (2)",
    "UPDATE public.a SET note = 'changed'",
    "DELETE FROM public.a",
    "SELECT FROM public.a FOR KEY SHARE",
    "INSERT INTO public.p VALUES (1, '2024-01-01')",
    "INSERT INTO public.p_rest VALUES (2, '2024-01-01')",
]
EXCLUSIVE = ["TRUNCATE public.a", "ALTER TABLE public.a ADD COLUMN more int"]


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_the_lock_holds_off_every_write_and_no_read(database, source, freeze, workers):
    """A superuser's too, and those that name a partition."""
    freeze.acquire(soon())
    futures = [workers.submit(write, database, statement) for statement in WRITES]
    wait_until(lambda: waiting(source) == len(WRITES))
    assert source.execute("SELECT * FROM public.a").fetchall() == [(1, "one")]
    source.execute("INSERT INTO public.elsewhere VALUES (1)")
    futures += [workers.submit(write, database, statement) for statement in EXCLUSIVE]
    wait_until(lambda: waiting(source) == len(WRITES) + len(EXCLUSIVE))
    assert freeze.is_held()
    freeze.release()
    for future in futures:
        try:
            future.result(timeout=20)
        except psycopg.errors.DeadlockDetected:
            pass  # the writers among themselves, once they are let in all at the same time
    assert not freeze.is_held()


def test_writers_are_held_off_whatever_their_role(database, source, freeze, workers, servers):
    name = f"writer_{source.info.backend_pid}"
    source.execute(f"CREATE ROLE {name}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}".encode())
    try:
        freeze.acquire(soon())
        future = workers.submit(write, database, f"SET ROLE {name}; INSERT INTO public.a VALUES (3)")
        wait_until(lambda: waiting(source) == 1)
        freeze.release()
        future.result(timeout=20)
        assert source.execute("SELECT count(*) FROM public.a").fetchall() == [(2,)]
    finally:
        source.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


def test_a_long_transaction_makes_the_freeze_give_up_and_let_go(database, source, freeze):
    with psycopg.connect(database) as writer:
        writer.execute("INSERT INTO public.p VALUES (1, '2024-01-01')")
        with pytest.raises(Refused, match=r"could not be locked in [2-9] attempts"):
            freeze.acquire(time.monotonic() + 2)
        writer.rollback()
    assert not freeze.is_held()
    source.execute("SET lock_timeout = '1s'")
    source.execute("UPDATE public.a SET note = 'free'")


def test_between_the_attempts_other_writers_get_through(database, source, freeze, workers):
    """Writers queue up behind a lock that is waited for: a long transaction must not stop them all."""
    with psycopg.connect(database) as holder:
        holder.execute("INSERT INTO public.p VALUES (1, '2024-01-01')")
        trying = workers.submit(freeze.acquire, soon())
        wait_until(lambda: waiting(source) > 0)
        started = time.monotonic()
        write(database, "INSERT INTO public.a VALUES (5)")
        assert time.monotonic() - started < 5
        assert not trying.done()
        holder.commit()
    trying.result(timeout=20)
    assert freeze.attempts > 1
    assert freeze.is_held()


def test_a_writer_that_locks_the_other_way_round_is_not_the_deadlock_s_victim(database, source, freeze, workers):
    """We hold `a` and wait for `p`; it holds `p` and wants `a`. Our attempt ends first."""
    with psycopg.connect(database) as writer:
        writer.execute("INSERT INTO public.p VALUES (1, '2024-01-01')")
        trying: Future[float] = workers.submit(freeze.acquire, soon())
        wait_until(lambda: waiting(source) == 1)
        writer.execute("INSERT INTO public.a VALUES (6)")
        writer.commit()
    trying.result(timeout=20)
    assert source.execute("SELECT count(*) FROM public.a WHERE id = 6").fetchall() == [(1,)]


def test_statements_that_would_keep_our_reads_waiting_are_cancelled(database, source, freeze, workers):
    """A TRUNCATE in the queue blocks every read behind it, those of the verification among them."""
    freeze.acquire(soon())
    truncating = workers.submit(write, database, EXCLUSIVE[0])
    writing = workers.submit(write, database, WRITES[0])
    wait_until(lambda: waiting(source) == 2)
    assert cancel_exclusive_waiters(source, freeze.pid) == 1
    with pytest.raises(psycopg.errors.QueryCanceled):
        truncating.result(timeout=20)
    source.execute("SET lock_timeout = '5s'")
    assert source.execute("SELECT * FROM public.a").fetchall() == [(1, "one")]
    assert not writing.done()


def test_a_broken_session_is_a_lost_lock(source, freeze):
    freeze.acquire(soon())
    source.execute("SELECT pg_terminate_backend(%s)", (freeze.pid,))
    wait_until(lambda: not freeze.is_held())
    freeze.release()


@pytest.mark.parametrize("previous", [None, "off", "on"])
def test_the_database_setting_is_restored_as_it_was(database, source, previous):
    source.execute("SELECT 1")
    name = source.info.dbname
    source.execute(f"ALTER DATABASE {name} SET work_mem = '5MB'".encode())
    store_read_only(source, previous)
    before = load_read_only(source)
    assert before == previous
    store_read_only(source, "on")
    with psycopg.connect(database) as other, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        other.execute("INSERT INTO public.a VALUES (9)")
    # Our own sessions are pinned and go on.
    with connect(database, "source", purpose="test") as ours:
        ours.execute("INSERT INTO public.elsewhere VALUES (2)")
    store_read_only(source, before)
    assert load_read_only(source) == previous
    with psycopg.connect(database) as other:
        assert other.execute("SHOW work_mem").fetchall() == [("5MB",)]


def test_sessions_that_wait_at_the_lock_are_ended_and_never_write(database, source, freeze, workers):
    """Released without that, they would write into a database that nobody replicates any more."""
    idle = psycopg.connect(database, autocommit=True)
    freeze.acquire(soon())
    store_read_only(source, "on")
    stubborn = "SET default_transaction_read_only = off; INSERT INTO public.a VALUES (7)"
    waiters = [workers.submit(write, database, statement) for statement in (*WRITES[:3], stubborn)]
    wait_until(lambda: waiting(source) == 4)
    ours = connect(database, "source", purpose="status")
    done = terminate_others(source, freeze.pid)
    assert (done.ended, done.left) == (5, 0)
    freeze.release()
    for waiter in waiters:
        with pytest.raises(psycopg.OperationalError):
            waiter.result(timeout=20)
    with pytest.raises(psycopg.OperationalError):
        idle.execute("INSERT INTO public.a VALUES (8)")
    assert source.execute("SELECT * FROM public.a").fetchall() == [(1, "one")]
    assert ours.execute("SELECT 1").fetchall() == [(1,)]
    ours.close()
    store_read_only(source, None)


def test_sessions_that_we_may_not_end_are_counted(database, source, servers):
    name = f"operator_{source.info.backend_pid}"
    source.execute(f"CREATE ROLE {name}".encode())
    superuser = psycopg.connect(database, autocommit=True)
    superuser.execute("SELECT 1")
    try:
        source.execute(f"SET SESSION AUTHORIZATION {name}".encode())
        done = terminate_others(source, -1, patience_s=0.2)
        assert (done.ended, done.left) == (0, 1)
        assert not may_store_read_only(source)
    finally:
        superuser.close()
        source.execute("RESET SESSION AUTHORIZATION")
        source.execute(f"DROP ROLE {name}".encode())


def test_what_stands_in_the_way_is_found_beforehand(database, source):
    with psycopg.connect(database) as writer:
        writer.execute("INSERT INTO public.p_rest VALUES (1, '2024-01-01')")
        [blocker] = load_blockers(source, TABLES, 0)
        assert (blocker.pid, blocker.role) == (writer.info.backend_pid, writer.info.user)
        assert load_blockers(source, TABLES, 60) == []
        writer.rollback()
        writer.execute("SELECT * FROM public.a")
        assert load_blockers(source, TABLES, 0) == []


def test_a_prepared_transaction_stands_in_the_way_too(start_server: Callable[..., Server]):
    """It holds its locks without a session, for ever if nobody ends it."""
    server = start_server(16, settings={"max_prepared_transactions": "5"})
    with connect(server.dsn(), "source", purpose="test") as conn:
        conn.execute(SCHEMA)
        conn.execute("BEGIN; INSERT INTO public.a VALUES (4); PREPARE TRANSACTION 'forgotten'")
        [blocker] = load_blockers(conn, TABLES, 0)
        assert (blocker.pid, blocker.role) == (0, "postgres")
        conn.execute("ROLLBACK PREPARED 'forgotten'")
        assert load_blockers(conn, TABLES, 0) == []


def test_roles_and_privileges_that_limit_the_freeze_are_found(source):
    pid = source.info.backend_pid
    reader, free = f"reader_{pid}", f"free_{pid}"
    source.execute(f"CREATE ROLE {reader}; CREATE ROLE {free}".encode())
    try:
        assert free not in roles_of_their_own_mind(source)
        source.execute(
            f"ALTER ROLE {free} IN DATABASE {source.info.dbname} SET default_transaction_read_only = off".encode()
        )
        assert free in roles_of_their_own_mind(source)
        assert tables_not_lockable(source, TABLES) == []
        source.execute("REVOKE ALL ON public.p FROM PUBLIC")
        source.execute(f"SET SESSION AUTHORIZATION {reader}".encode())
        assert tables_not_lockable(source, TABLES) == ["p"]
    finally:
        source.execute("RESET SESSION AUTHORIZATION")
        source.execute(f"DROP ROLE {reader}; DROP ROLE {free}".encode())


def test_acquire_tells_when_writers_began_to_wait(database, source, freeze, workers):
    """Not when the first attempt began: between the attempts they went on."""
    with psycopg.connect(database) as holder:
        holder.execute("INSERT INTO public.a VALUES (10)")
        threading.Timer(1.5, holder.commit).start()
        asked = time.monotonic()
        began = freeze.acquire(soon())
    assert freeze.attempts >= 2
    assert began - asked > 0.4
