import time
from random import Random

import psycopg
import pytest

from replicator.demo.freshtrack import Workload, extras_schema, generate, source_schema
from replicator.demo.freshtrack.inserts import Transaction
from replicator.demo.freshtrack.transactions import Transactions
from tests.conftest import ALL_MAJORS
from tests.oracle import assert_same_rows, assert_valid_foreign_keys


@pytest.fixture
def source(pair):
    return filled(pair.source_dsn)


def filled(dsn):
    with psycopg.connect(dsn) as conn:
        conn.execute(source_schema() + extras_schema())
        generate(conn, 1_000, seed=1)
    return dsn


def scalar(dsn, query):
    with psycopg.connect(dsn) as conn:
        return conn.execute(query).fetchone()[0]


def test_writers_do_everything_without_errors(source):
    """Five seconds are enough for each kind of transaction, rare ones included."""
    with Workload(source, seed=1, extras=True, lookup_churn=True) as workload:
        time.sleep(5)
    stats = workload.stats
    assert stats.errors == []
    assert stats.rejected == 0
    assert set(stats.changes) == {"insert", "update", "delete", "key change", "truncate"}
    assert len(stats.by_name) == 26
    assert stats.transactions > 200
    assert stats.conflicts < stats.transactions / 5
    assert scalar(source, "SELECT count(*) FROM auth.users WHERE email LIKE 'new-%'") > 0
    assert scalar(source, "SELECT count(*) FROM append_log") > 0
    with psycopg.connect(source) as conn:
        assert_valid_foreign_keys(conn)


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_updates_leave_long_values_out_of_the_stream(database):
    """The writers really make updates whose long column is not sent."""
    source = filled(database)
    with psycopg.connect(source, autocommit=True) as conn:
        conn.execute("SELECT pg_create_logical_replication_slot('changes', 'pgoutput')")
        conn.execute("CREATE PUBLICATION changes FOR TABLE alerts, event_logs, pairing_sessions")
        transactions = Transactions(Random(1), conn, extras=False, lookup_churn=False)
        for make in (transactions.change_beside_long_values, transactions.truncate, transactions.change_keys) * 30:
            with conn.transaction():
                make(Transaction(conn))
        messages = [
            data
            for (data,) in conn.execute(
                "SELECT data FROM pg_logical_slot_peek_binary_changes('changes', NULL, NULL,"
                " 'proto_version', '1', 'publication_names', 'changes')"
            )
        ]
    updates = [data for data in messages if data[:1] == b"U"]
    assert any(unchanged(data) for data in updates)
    assert any(data[5:6] == b"K" for data in updates), "no key change"
    assert any(data[5:6] == b"K" and unchanged(data) for data in updates), "no key change beside a long value"
    assert any(data[:1] == b"T" for data in messages)


def unchanged(update):
    """Whether the new tuple of an Update message has a column of kind ``u``."""
    at = 5
    found = False
    while at < len(update):
        at += 1  # K, O or N
        columns = int.from_bytes(update[at : at + 2])
        at += 2
        for _ in range(columns):
            kind = update[at : at + 1]
            at += 1
            if kind in b"tb":
                at += 4 + int.from_bytes(update[at : at + 4])
            found |= kind == b"u"
    return found


def test_one_seed_makes_one_sequence_of_transactions(pair, fresh_database):
    dsns = [filled(pair.source_dsn), filled(fresh_database(pair.source))]
    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as conn:
            transactions = Transactions(Random(3), conn, extras=True, lookup_churn=False)
            for _ in range(150):
                with conn.transaction():
                    transactions.choose()(Transaction(conn))
    with psycopg.connect(dsns[0]) as first, psycopg.connect(dsns[1]) as second:
        assert assert_same_rows(first, second, "sensor_readings") > 400
        assert_same_rows(first, second, "alerts", columns=["id", "status", "message", "metadata"])
        assert_same_rows(first, second, "door_events", columns=["id", "state", "timestamp"])


def test_writers_survive_a_restart_and_a_crash(own_servers):
    source = filled(own_servers.source_dsn)
    with Workload(source, seed=1, writers=2) as workload:
        workload.wait_for(20)
        for stop in (own_servers.source.stop, own_servers.source.kill):
            stop()
            own_servers.source.start_again()
            workload.wait_for(workload.stats.transactions + 20)
    assert workload.stats.errors == []
    assert workload.stats.rejected > 0
    assert workload.stats.reconnects >= 2


def test_a_connection_lost_at_a_rollback_is_a_lost_connection(source, monkeypatch):
    """The driver warns of the rollback that failed and passes on the exception that asked for it."""
    lost = []

    def lose(tx):
        lost.append(tx.conn.info.backend_pid)
        with psycopg.connect(source) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", lost[-1:])
        raise psycopg.Rollback

    choose = Transactions.choose
    monkeypatch.setattr(Transactions, "choose", lambda self: choose(self) if lost else lose)
    with Workload(source, seed=1, writers=1) as workload:
        workload.wait_for(5)
    assert workload.stats.errors == []
    assert workload.stats.rejected == 1
    assert workload.stats.reconnects == 1


def test_refused_writes_are_counted_and_writing_goes_on_when_allowed(source, pair):
    with Workload(source, seed=1, writers=1) as workload:
        workload.wait_for(5)
        with psycopg.connect(source) as conn:
            conn.execute("LOCK TABLE sensor_readings IN EXCLUSIVE MODE")
            committed = workload.stats.transactions
            deadline = time.monotonic() + 20
            while not workload.stats.rejected and time.monotonic() < deadline:
                time.sleep(0.05)
        assert workload.stats.rejected > 0
        workload.wait_for(committed + 20)
    assert workload.stats.errors == []


def test_writers_stop_though_the_server_is_silent(own_servers, monkeypatch):
    """A hung server must not hang the test that hung it."""
    monkeypatch.setattr("replicator.demo.freshtrack.workload._STOP_TIMEOUT_S", 0.5)
    workload = Workload(filled(own_servers.source_dsn), seed=1, writers=2).start()
    workload.wait_for(5)
    own_servers.source.pause()
    time.sleep(0.2)
    began = time.monotonic()
    workload.stop()
    assert time.monotonic() - began < 5
    own_servers.source.resume()
    assert workload.stats.errors == []


def test_the_rate_is_kept(source):
    with Workload(source, seed=1, writers=2, rate=40) as workload:
        time.sleep(1.5)
    attempts = workload.stats.by_name.total()
    assert 30 <= attempts <= 70
