"""Drift at odd moments: in one transaction with rows, during the snapshot, around the cutover, under a lock."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

from replicator.cutover import run_cutover
from replicator.errors import ReplicatorError
from tests.drift.moving import Moving

T = "CREATE TABLE t (id int PRIMARY KEY, a text, b text);"
ROWS = "INSERT INTO t SELECT i, 'a' || i, 'b' || i FROM generate_series(1, 20) i;"


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_all_in_one_transaction(moving, running):
    case = moving(T, rows=ROWS)
    if not running:
        case.stop()
    case.on_source(
        "INSERT INTO t VALUES (100, 'a', 'b')",
        "ALTER TABLE t ADD c int DEFAULT 7", "UPDATE t SET c = 8 WHERE id IN (1, 100)",
        "ALTER TABLE t RENAME a TO x", "INSERT INTO t VALUES (101, 'x', 'b', 9)",
        "ALTER TABLE t DROP b", "DELETE FROM t WHERE id = 2", "INSERT INTO t VALUES (102, 'x', 10)",
        "UPDATE t SET c = 1 WHERE id = 102",
    )  # fmt: skip
    before = case.applied()
    case.ends("t: ")
    assert case.applied() == before or running
    case.target.execute("ALTER TABLE t RENAME a TO x; ALTER TABLE t DROP b; ALTER TABLE t ADD c int DEFAULT 7")
    case.same("t")


@pytest.fixture
def each_by_itself(monkeypatch):
    """Small tables are not copied together: each has a task of its own, as large ones do."""
    monkeypatch.setattr("snapshot.plan._GROUP_TABLES", 1)


@pytest.mark.usefixtures("each_by_itself")
def test_an_alteration_while_tables_are_copied(pair, request):
    """It waits for the copy, and the copy of what comes behind it in the queue must not wait for it."""
    case = Moving(pair, T + "CREATE TABLE u (id int PRIMARY KEY, a text, b text);",
                  rows=ROWS + "INSERT INTO u SELECT * FROM t;")  # fmt: skip
    request.addfinalizer(case.close)
    with psycopg.connect(pair.target_dsn) as blocker, psycopg.connect(pair.source_dsn, autocommit=True) as owner:
        blocker.execute("LOCK TABLE t IN SHARE ROW EXCLUSIVE MODE; LOCK TABLE u IN SHARE ROW EXCLUSIVE MODE")
        case.start()
        case.wait(lambda: _copies_wait(case) == 2, "both copies to wait")
        altering = threading.Thread(target=owner.execute, args=("ALTER TABLE t ADD c int DEFAULT 5",))
        altering.start()
        time.sleep(0.5)
        blocker.rollback()
        altering.join(60)
        assert not altering.is_alive()
    case.on_source("INSERT INTO t VALUES (100, 'a', 'b', 6)")
    case.ends("does not know: c", "ADD COLUMN c integer DEFAULT 5")
    case.target.execute("ALTER TABLE t ADD COLUMN c integer DEFAULT 5")
    case.same("t", "u")


def _copies_wait(case: Moving) -> int:
    return len(case.target.execute(
        "SELECT FROM pg_stat_activity WHERE application_name LIKE 'replicator copy%' AND wait_event_type = 'Lock'"
        " AND datname = current_database()").fetchall())  # fmt: skip


@pytest.mark.usefixtures("each_by_itself")
def test_an_alteration_that_waits_in_front_of_a_copy(pair, request):
    """The copy's session queues up behind the ALTER, which waits for our snapshot, which waits for the copy."""
    tables = "".join(f"CREATE TABLE t{n} (id int PRIMARY KEY);" for n in range(3))
    case = Moving(pair, tables, rows="".join(f"INSERT INTO t{n} VALUES (1);" for n in range(3)),
                  snapshot={"workers": 1})  # fmt: skip
    request.addfinalizer(case.close)
    with psycopg.connect(pair.target_dsn) as blocker, psycopg.connect(pair.source_dsn, autocommit=True) as owner:
        blocker.execute("LOCK TABLE t0, t1, t2 IN SHARE ROW EXCLUSIVE MODE")
        case.start()
        case.wait(lambda: _copies_wait(case), "the copies to wait")
        # One of them is being copied; the others' copies have not begun.
        threads = []
        for n in range(3):
            conn = owner if n == 0 else psycopg.connect(pair.source_dsn, autocommit=True)
            threads.append(threading.Thread(target=conn.execute, args=(f"ALTER TABLE t{n} ADD v int",)))
            threads[-1].start()
        time.sleep(0.5)
        blocker.rollback()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "the snapshot and the ALTER wait for each other"
    for n in range(3):
        case.target.execute(f"ALTER TABLE t{n} ADD v int")
    case.on_source(*(f"INSERT INTO t{n} VALUES (2, 2)" for n in range(3)))
    case.same("t0", "t1", "t2")


@pytest.mark.parametrize(
    "statement",
    ["ALTER TABLE t DROP b; ALTER TABLE t ADD b text", "CREATE TABLE fresh (id int)", "ALTER TABLE t RENAME TO other"],
)
def test_the_cutover_is_refused_after_an_alteration(moving, statement):
    case = moving(T, rows=ROWS)
    case.wait(lambda: case.status().phase == "streaming", "the stream to have caught up")
    case.on_source(statement)
    with pytest.raises(ReplicatorError, match=r"another one than|fresh is new|called public.other now|not run|rename"):
        run_cutover(case.settings, timeout_s=20)
    assert case.source.execute("SHOW default_transaction_read_only").fetchall() == [("off",)]


def test_a_table_of_the_target_that_is_locked_is_waited_for_and_told(moving):
    case = moving(T, rows=ROWS)
    case.stop()
    with psycopg.connect(case.pair.target_dsn, application_name="somebody") as blocker:
        blocker.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        case.start()
        case.wait(lambda: any("waits for table t of the target, which process" in each and "(somebody)" in each
                              for each in case.status().problems), "the wait to be told")  # fmt: skip
    case.same("t")


LOOKED_UP = """
    CREATE TABLE people (id int PRIMARY KEY, login text UNIQUE);
    CREATE TABLE t (id int PRIMARY KEY, who text);
"""
LOOKED_UP_ROWS = """
    INSERT INTO people SELECT i, 'p' || i FROM generate_series(1, 9) i;
    INSERT INTO t SELECT i, 'p' || i FROM generate_series(1, 5) i;
"""


def test_a_lookup_that_comes_into_the_settings_later(moving):
    """Neither its entries nor what it maps is on the target: both tables have to be copied."""
    case = moving(LOOKED_UP, rows=LOOKED_UP_ROWS, tables=["people", "t"])
    case.stop()
    lookup = {"kind": "lookup", "table": "people", "key": "login", "value": "id", "columns": ["t.who"]}
    case.given["id_maps"] = {"person": lookup}
    case.ends("people: .*id_maps.person. looks it up", "t: column who passes through the map person")
    case.copy("people", "t")
    case.on_source("INSERT INTO people VALUES (20, 'new')", "INSERT INTO t VALUES (20, 'new'), (21, 'p3')")
    case.drain()
    assert case.target.execute("SELECT DISTINCT who FROM t ORDER BY 1").fetchall() == [
        (str(n),) for n in sorted(map(str, [1, 2, 3, 4, 5, 20]))
    ]
