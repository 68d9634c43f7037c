"""What must never break: each invariant by name, on real servers."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

from replicator.errors import ReplicatorError, RowRejected, StateError, TransientError
from replicator.model.lsn import Lsn
from replicator.postgres.connection import connect
from replicator.stream.run import Outcome
from replicator.target.state import lock_writer
from tests.conftest import ALL_PAIRS

T = "CREATE TABLE t (id int PRIMARY KEY, v int);"
# Fails only at COMMIT, in every role: an ordinary trigger would rest in a session that replicates.
AT_COMMIT = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE integrity_constraint_violation; END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse();
ALTER TABLE t ENABLE ALWAYS TRIGGER refuse;
"""


def test_invariant_1_rows_and_checkpoint_are_committed_together(make_case):
    """The commit itself fails: neither has moved, and nothing is lost once it can succeed."""
    case = make_case(T)
    case.drain()
    case.stop()
    case.target.execute(AT_COMMIT)
    before = case.checkpoint()
    case.execute("INSERT INTO t VALUES (1, 1)")
    case.fails(ReplicatorError)
    assert case.rows("SELECT count(*) FROM t") == [(0,)]
    assert case.checkpoint().applied_lsn < case.source_lsn()
    assert case.checkpoint().applied_lsn <= before.applied_lsn
    case.target.execute("DROP TRIGGER refuse ON t")
    case.same("t")


def test_invariant_1_a_restart_at_any_checkpoint_applies_each_transaction_once(make_case):
    case = make_case(T, seed="INSERT INTO t VALUES (0, 0);")
    for i in range(1, 6):
        case.execute(f"INSERT INTO t VALUES ({i}, 0)", "UPDATE t SET v = v + 1")
        case.start()
        if i % 2:
            case.drain()
        case.stop()
    case.same("t")
    assert case.rows("SELECT v FROM t WHERE id = 0") == [(5,)]


def test_invariant_2_feedback_never_exceeds_the_committed_checkpoint(make_case):
    """The target is held up by a lock: what was received must not be confirmed, and the server must not time out."""
    case = make_case(T)
    case.drain()
    case.wait(lambda: case.confirmed_flush() > 0, "feedback")
    committed = case.checkpoint().applied_lsn
    with psycopg.connect(case.pair.target_dsn) as blocker:
        blocker.execute("LOCK TABLE t")
        case.execute("INSERT INTO t VALUES (1, 1)")
        case.wait(case.applier_waits, "the applier to wait")
        case.execute("INSERT INTO t VALUES (2, 2)")
        replied = case.source.execute("SELECT clock_timestamp()").fetchall()[0][0]

        def answered() -> bool:
            [(at, sent, flushed)] = case.source.execute(
                "SELECT reply_time, sent_lsn::text, flush_lsn::text FROM pg_stat_replication WHERE pid ="
                " (SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s)", [case.slot]
            ).fetchall()  # fmt: skip
            assert Lsn.parse(flushed) <= case.checkpoint().applied_lsn
            return at is not None and at > replied and Lsn.parse(sent) > case.checkpoint().applied_lsn

        case.wait(answered, "feedback while the target is held up")
        assert case.confirmed_flush() <= case.checkpoint().applied_lsn
        assert case.checkpoint().applied_lsn < case.source_lsn()
        assert case.checkpoint().applied_lsn >= committed
    case.same("t")
    lsn = case.checkpoint().applied_lsn
    case.wait(lambda: case.confirmed_flush() >= lsn, "the confirmation")


def test_invariant_3_an_idle_source_moves_the_checkpoint_before_it_is_confirmed(make_case):
    case = make_case(T + "CREATE TABLE other (id int);", tables=["t"])
    case.drain()
    case.execute("INSERT INTO other SELECT generate_series(1, 1000)")
    lsn = case.source_lsn()
    deadline = time.monotonic() + 30
    while case.confirmed_flush() < lsn:
        assert time.monotonic() < deadline
        confirmed = case.confirmed_flush()
        assert confirmed <= case.checkpoint().applied_lsn
        time.sleep(0.02)


def test_invariant_6_a_missing_row_stops_the_stream_and_nothing_is_dropped(make_case):
    case = make_case(T, seed="INSERT INTO t SELECT i, 0 FROM generate_series(1, 5) i;")
    case.drain()
    for statement in (
        "UPDATE t SET v = v + 1 WHERE id = 2",
        "DELETE FROM t WHERE id = 2",
        "UPDATE t SET id = 7 WHERE id = 2",
    ):
        [row] = case.rows("DELETE FROM t WHERE id = 2 RETURNING *") or [None]
        before = case.checkpoint().applied_lsn
        case.execute("INSERT INTO t VALUES (100, 1)", statement)
        error = case.fails(RowRejected)
        assert "t hit 0 rows instead of 1" in error.message
        assert "verify" in error.hint
        assert before <= case.checkpoint().applied_lsn < case.source_lsn()
        assert case.rows("SELECT count(*) FROM t WHERE id = 100") == [(0,)]
        case.target.execute("INSERT INTO t VALUES (%s, %s)", row)
        case.same("t")
        case.execute("DELETE FROM t WHERE id = 100", "INSERT INTO t VALUES (2, 0) ON CONFLICT DO NOTHING")
        case.same("t")


def test_invariant_6_a_row_hit_twice_stops_the_stream(make_case):
    """The source's key is not unique on the target."""
    case = make_case(T, "CREATE TABLE t (id int, v int);", seed="INSERT INTO t VALUES (1, 1);")
    case.target.execute("INSERT INTO t VALUES (1, 5)")
    case.execute("UPDATE t SET v = 2")
    assert "t hit 2 rows instead of 1" in case.fails(RowRejected).message
    assert case.rows("SELECT v FROM t ORDER BY v") == [(1,), (5,)]


def test_invariant_8_one_writer(make_case):
    case = make_case(T)
    first, second = (connect(case.settings.target.dsn, "target", purpose="test") for _ in range(2))
    with first, second:
        lock_writer(first, case.slot)
        with pytest.raises(StateError, match="another replicator is already running"):
            lock_writer(second, case.slot)
        lock_writer(second, "another_slot")
        first.close()
        deadline = time.monotonic() + 10
        while True:
            try:
                lock_writer(second, case.slot)
            except StateError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                break


@pytest.mark.parametrize("pair", ALL_PAIRS[:1], indirect=True)
def test_a_giant_transaction_shows_on_the_target_all_at_once(make_case):
    """It is applied in many parts, of which no reader ever sees fewer than all."""
    case = make_case(T + "CREATE TABLE u (id int PRIMARY KEY, v text UNIQUE);", stream={"max_batch_rows": 5000})
    case.drain()
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        with psycopg.connect(case.pair.target_dsn, autocommit=True) as reader:
            while not done.is_set():
                seen.update(count for (count,) in reader.execute("SELECT count(*) FROM t"))

    reader = threading.Thread(target=watch)
    reader.start()
    case.execute(
        "INSERT INTO u SELECT i, i FROM generate_series(1, 20) i",
        "INSERT INTO t SELECT i, i FROM generate_series(1, 100000) i",
        "UPDATE u SET v = '-' WHERE id = 1", "UPDATE u SET v = 1 WHERE id = 2", "UPDATE u SET v = 2 WHERE id = 1",
        "DELETE FROM t WHERE id % 10 = 0",
    )  # fmt: skip
    case.drain()
    done.set()
    reader.join()
    assert seen == {0, 90_000}
    case.same("t", "u")
    case.wait(lambda: case.rows("SELECT sum(rows_applied) FROM replicator.table_state") == [(110_023,)], "the counts")


def test_a_giant_transaction_that_fails_in_a_late_part_leaves_nothing(make_case):
    case = make_case(T, "CREATE TABLE t (id int PRIMARY KEY CHECK (id < 2900), v int);", stream={"max_batch_rows": 500})
    case.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 3000) i")
    case.fails(RowRejected)
    assert case.rows("SELECT count(*) FROM t") == [(0,)]
    case.target.execute("ALTER TABLE t DROP CONSTRAINT t_id_check")
    case.same("t")


def test_until_a_position(make_case):
    case = make_case(T)
    case.execute("INSERT INTO t VALUES (1, 1)")
    lsn = case.source_lsn()
    case.start(until=lsn)
    case.wait(lambda: not case._thread.is_alive(), "the end")
    case.stop()
    assert case.outcome is Outcome.REACHED
    assert case.checkpoint().applied_lsn >= lsn
    assert case.rows("SELECT * FROM t") == [(1, 1)]


def test_a_lost_connection_is_worth_a_retry(make_case):
    """Either side's: from the checkpoint on, nothing is lost or doubled."""
    case = make_case(T)
    case.drain()
    for conn, purpose in ((case.source, "stream"), (case.target, "apply")):
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s AND"
                     " datname = current_database()", [f"replicator {purpose}"])  # fmt: skip
        case.execute(f"INSERT INTO t VALUES ({len(purpose)}, 0)")
        case.fails(TransientError)
        case.same("t")


def test_a_cutover_that_has_finalized_and_a_requested_copy_end_the_stream(make_case):
    case = make_case(T)
    case.drain()
    for change, outcome in (
        ("UPDATE replicator.table_state SET state = 'copy_requested'", Outcome.COPY_REQUESTED),
        ("UPDATE replicator.table_state SET state = 'copied'; UPDATE replicator.checkpoint SET phase = 'cut_over'",
         Outcome.FINALIZED),
    ):  # fmt: skip
        if case._thread is None:
            case.start()
        case.target.execute(change)
        case.wait(lambda: not case._thread.is_alive(), "the end")
        case.stop()
        assert case.outcome is outcome


def test_a_checkpoint_removed_under_the_stream_stops_it(make_case):
    case = make_case(T)
    case.drain()
    case.target.execute("DELETE FROM replicator.checkpoint")
    assert "the checkpoint is gone" in case.fails(StateError).message
