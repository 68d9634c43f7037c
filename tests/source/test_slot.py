import threading
import time

import psycopg
import pytest

from replicator.errors import StateError
from replicator.postgres.connection import connect
from replicator.source.slot import _options, create_slot, drop_slot, load_slot
from tests.conftest import ALL_MAJORS
from tests.snapshot.case import slot_name


@pytest.fixture
def conn(database):
    with psycopg.connect(database, autocommit=True) as conn:
        yield conn


def replication_session(database):
    return connect(database, "source", purpose="test", replication=True)


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_the_exported_snapshot_is_the_consistent_point(database, conn):
    """What committed before is in it, what comes after is not; and it dies with the next command."""
    conn.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    name = slot_name(database)
    with replication_session(database) as session:
        created = create_slot(session, name)
        conn.execute("INSERT INTO t VALUES (2)")
        with psycopg.connect(database) as reader:
            reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            reader.execute(f"SET TRANSACTION SNAPSHOT '{created.snapshot_name}'")
            assert reader.execute("SELECT id FROM t").fetchall() == [(1,)]
        found = load_slot(conn, name)
    assert found is not None
    assert found.confirmed_flush_lsn == created.consistent_point
    assert found.restart_lsn is not None
    assert found.restart_lsn <= created.consistent_point
    assert (found.plugin, found.database) == ("pgoutput", conn.info.dbname)
    assert (found.active, found.active_pid, found.is_lost, found.two_phase) == (False, None, False, False)
    assert found.wal_status == "reserved"
    assert found.safe_bytes is None
    assert found.retained_bytes > 0


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_a_temporary_slot_goes_with_its_session(database, conn):
    name = slot_name(database)
    with replication_session(database) as session:
        create_slot(session, name, temporary=True)
        found = load_slot(conn, name)
        assert found is not None
        assert found.active
        assert found.active_pid == session.info.backend_pid
    for _ in range(200):
        if load_slot(conn, name) is None:
            return
        time.sleep(0.02)
    raise AssertionError("the temporary slot stays")


def test_a_name_that_is_taken_is_an_error_of_state(database, conn):
    name = slot_name(database)
    conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
    with replication_session(database) as session, pytest.raises(StateError, match="already exists"):
        create_slot(session, name)


def test_dropping_what_is_not_there_is_no_error(conn):
    drop_slot(conn, "there_is_no_such_slot")


def test_dropping_waits_for_a_session_that_lets_go(database, conn):
    name = slot_name(database)
    session = replication_session(database)
    create_slot(session, name, temporary=True)
    threading.Timer(0.7, session.close).start()
    drop_slot(conn, name)
    assert load_slot(conn, name) is None


def test_a_slot_in_use_is_neither_dropped_nor_freed_by_force(database, conn, monkeypatch):
    monkeypatch.setattr("replicator.source.slot._DROP_TIMEOUT_S", 0.3)
    name = slot_name(database)
    with replication_session(database) as session:
        create_slot(session, name, temporary=True)
        with pytest.raises(StateError, match="in use"):
            drop_slot(conn, name)
        assert session.execute("IDENTIFY_SYSTEM").fetchone() is not None
        assert load_slot(conn, name) is not None


def test_a_lost_slot_is_recognized(start_server):
    server = start_server(
        16, settings={"max_slot_wal_keep_size": "1MB", "max_wal_size": "64MB", "min_wal_size": "32MB"}
    )
    dsn = server.create_database("app")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        found = load_slot(conn, "s")
        assert found is not None
        assert found.safe_bytes is not None
        conn.execute("CREATE TABLE t (v text)")
        for _ in range(8):
            conn.execute("INSERT INTO t SELECT repeat('x', 100) FROM generate_series(1, 1000)")
            conn.execute("SELECT pg_switch_wal()")
            conn.execute("CHECKPOINT")
        found = load_slot(conn, "s")
        assert found is not None
        assert found.is_lost
        assert found.wal_status == "lost"
        assert found.retained_bytes >= 0


def test_the_grammar_of_each_server_version():
    """14 knows no parenthesized options, and failover slots came with 17."""
    assert _options(140012, failover=False) == "EXPORT_SNAPSHOT"
    assert _options(150000, failover=False) == "(SNAPSHOT 'export')"
    assert _options(160000, failover=True) == "(SNAPSHOT 'export')"
    assert _options(170000, failover=True) == "(SNAPSHOT 'export', FAILOVER true)"


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_the_grammar_of_14_is_still_understood(database):
    """So what we send to a server 14, which is not at hand everywhere, is at least well-formed."""
    with replication_session(database) as session:
        row = session.execute(
            f"CREATE_REPLICATION_SLOT {slot_name(database)} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT"
        ).fetchone()
    assert row is not None
    assert row[2]
