"""Invariant 4: the stream refuses to start where rows would be missing, and says what happened."""

from __future__ import annotations

import psycopg
import pytest

from replicator.errors import SlotLost, StateError, TransientError
from replicator.stream.run import Outcome

T = "CREATE TABLE t (id int PRIMARY KEY, v int);"


@pytest.fixture
def case(make_case):
    case = make_case(T)
    case.execute("INSERT INTO t VALUES (1, 1)")
    case.drain()
    lsn = case.checkpoint().applied_lsn
    case.wait(lambda: case.confirmed_flush() >= lsn, "the confirmation")
    case.stop()
    query = "SELECT FROM pg_replication_slots WHERE slot_name = %s AND NOT active"
    case.wait(lambda: bool(case.source.execute(query, [case.slot]).fetchall()), "the slot")
    return case


def refused(case, kind, fragment):
    before = case.checkpoint().applied_lsn
    error = case.fails(kind)
    assert fragment in error.message
    assert error.hint
    assert case.checkpoint().applied_lsn == before
    assert case.rows("SELECT * FROM t") == [(1, 1)]


def test_all_is_well(case):
    case.execute("INSERT INTO t VALUES (2, 2)")
    case.same("t")
    case.stop()
    assert case.outcome is Outcome.STOPPED


def test_a_dropped_slot(case):
    case.source.execute("SELECT pg_drop_replication_slot(%s)", [case.slot])
    case.execute("INSERT INTO t VALUES (2, 2)")
    refused(case, SlotLost, "is gone from the source")


def test_a_slot_created_again(case):
    case.source.execute("SELECT pg_drop_replication_slot(%s)", [case.slot])
    case.execute("INSERT INTO t VALUES (2, 2)")
    case.source.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [case.slot])
    refused(case, SlotLost, "past our checkpoint")


def test_a_slot_of_another_plugin(case):
    case.source.execute("SELECT pg_drop_replication_slot(%s)", [case.slot])
    try:
        case.source.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", [case.slot])
    except psycopg.errors.UndefinedFile:
        pytest.skip("the server has no other plugin")
    refused(case, StateError, "not the one that we made")


def test_a_slot_that_somebody_advanced(case):
    """The server would start at its own position without a word."""
    case.execute("INSERT INTO t VALUES (2, 2)")
    case.source.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [case.slot])
    case.execute("INSERT INTO t VALUES (3, 3)")
    refused(case, SlotLost, "past our checkpoint")


def test_a_checkpoint_set_back(case):
    """As a target restored from a backup has it."""
    case.target.execute("UPDATE replicator.checkpoint SET applied_lsn = applied_lsn - 1")
    confirmed = case.confirmed_flush()
    case.target.execute("UPDATE replicator.checkpoint SET applied_lsn = %s::pg_lsn - 1", [str(confirmed)])
    refused(case, SlotLost, "past our checkpoint")


@pytest.mark.parametrize(("column", "value"), [("system_identifier", "1234567890"), ("database", "elsewhere")])
def test_another_source(case, column, value):
    case.target.execute(f"UPDATE replicator.checkpoint SET {column} = %s", [value])
    refused(case, StateError, "not the one that slot")


def test_a_missing_publication(case):
    case.source.execute("DROP PUBLICATION replicator")
    refused(case, SlotLost, "changes made without it are lost")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ("ALTER PUBLICATION replicator DROP TABLE ONLY t", "does not publish t"),
        ("ALTER PUBLICATION replicator SET (publish = 'insert')", "does not publish delete, truncate, update"),
        ("ALTER PUBLICATION replicator SET (publish_via_partition_root = false)", "publish_via_partition_root is off"),
        ("ALTER PUBLICATION replicator SET TABLE t (id, v)", "a column list for t"),
        ("ALTER PUBLICATION replicator SET TABLE t WHERE (id > 0)", "a row filter"),
        ("CREATE TABLE u (id int PRIMARY KEY); ALTER PUBLICATION replicator ADD TABLE u", "not in the plan: u"),
        ("DROP PUBLICATION replicator; CREATE PUBLICATION replicator FOR ALL TABLES", "publishes all tables"),
    ],
)
def test_a_publication_that_was_changed(case, change, fragment):
    case.settings = case.settings.model_copy(update={"tables": ("t",)})
    case.source.execute(change)
    error = case.fails((StateError, SlotLost))
    assert fragment in error.message
    assert error.hint


def test_no_checkpoint(case):
    case.target.execute("DELETE FROM replicator.checkpoint")
    with pytest.raises(StateError, match="no checkpoint on the target"):
        case.start()
    case._thread = None


def test_a_slot_in_use_is_worth_a_retry(case):
    other = psycopg.connect(case.pair.source_dsn + "?replication=database", autocommit=True)
    with other:
        start = f"START_REPLICATION SLOT {case.slot} LOGICAL 0/0 (proto_version '1', publication_names 'replicator')"
        other.pgconn.exec_(start.encode())
        assert "is active" in case.fails(TransientError).message
        other.close()
    case.same("t")
