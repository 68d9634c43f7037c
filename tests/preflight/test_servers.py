"""Checks of the servers themselves, and of connections that do not come about."""

import psycopg
import pytest

from replicator.demo.servers import find_installations
from replicator.errors import ConfigError, TransientError
from replicator.postgres.connection import connect
from replicator.preflight import Status, run, source_server
from tests.preflight.sides import Sides

PLAIN = "CREATE TABLE t (id int PRIMARY KEY, v text)"


def test_a_source_that_is_set_up_for_something_else(start_server):
    """One server with everything wrong at once: each fault has its own check."""
    major = max(find_installations(), default=16)
    settings = {
        "wal_level": "replica",
        "max_replication_slots": "1",
        "max_wal_senders": "1",
        "max_slot_wal_keep_size": "64MB",
        "wal_sender_timeout": "1s",
        "max_prepared_transactions": "2",
        **({"idle_replication_slot_timeout": "10min"} if major >= 18 else {}),
    }
    source, target = start_server(major, settings=settings), start_server(min(find_installations(), default=16))
    sides = Sides(source.create_database("app"), target.create_database("app"))
    sides.both(PLAIN)
    sides.source("SELECT pg_create_physical_replication_slot('somebody')")
    sides.source("ALTER ROLE postgres SET statement_timeout = '2min'")
    with psycopg.connect(sides.source_dsn) as conn:
        conn.execute("INSERT INTO t VALUES (1); PREPARE TRANSACTION 'pending'")
    found = sides.check()
    expected = {
        ("wal_level", "fail"),
        ("replication_slots", "fail"),
        ("max_slot_wal_keep_size", "warn"),
        ("wal_sender_timeout", "warn"),
        ("prepared_transactions", "warn"),
        ("failover", "warn"),  # a standby's slot, by the look of it
    }
    if major >= 18:
        expected.add(("idle_replication_slot_timeout", "warn"))
        assert "600" in found.text("idle_replication_slot_timeout")
    assert found.bad() == expected
    assert "raise max_slot_wal_keep_size to 4GB" in found.text("max_slot_wal_keep_size")
    assert "120 s by default, off in our sessions" in found.text("statement_timeout")
    sides.source("ROLLBACK PREPARED 'pending'")
    assert sides.check().status("prepared_transactions") == {"pass"}


def test_the_last_wal_sender_counts_and_the_wal_kept_is_compared_with_the_tables(start_server):
    major = min(find_installations(), default=16)
    source = start_server(major, settings={"max_wal_senders": "1", "max_slot_wal_keep_size": "8GB"})
    sides = Sides(source.create_database("app"), source.create_database("other"))
    sides.both(PLAIN)
    with psycopg.connect(source.dsn("app"), autocommit=True, replication="database"):
        found = sides.check()
    assert found.status("wal_senders") == {"fail"}
    assert sides.check().status("wal_senders") == {"pass"}

    # More may be written during the copy of a large database than of a small one.
    assert sides.check().status("max_slot_wal_keep_size") == {"pass"}
    with connect(sides.source_dsn, "source", purpose="test") as conn:
        [large] = source_server.check_wal_kept(conn, 20 << 30)
    assert large.status is Status.WARN
    assert "20GB" in large.remedy


def test_a_transaction_that_writes_for_long_delays_the_slot(sides, monkeypatch):
    sides.both(PLAIN)
    monkeypatch.setattr(source_server, "_LONG_TRANSACTION_S", 0)
    with psycopg.connect(sides.source_dsn) as reader, psycopg.connect(sides.source_dsn) as writer:
        reader.execute("SELECT * FROM t")
        before = sides.check()
        writer.execute("INSERT INTO t VALUES (1)")
        pid = writer.info.backend_pid
        found = sides.check()
    assert str(pid) not in before.text("long_transactions"), "a transaction that only reads delays nothing"
    assert found.status("long_transactions") == {"warn"}
    assert str(pid) in found.text("long_transactions")


def create_database(dsn: str, name: str, options: str) -> str:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE template0 {options}")
    return psycopg.conninfo.make_conninfo(dsn, dbname=name)


@pytest.mark.parametrize(
    "options, expected",
    [
        ("ENCODING 'SQL_ASCII' LOCALE 'C'", ("encoding", "fail")),
        ("ENCODING 'LATIN1' LOCALE 'C'", ("encoding", "warn")),
    ],
    ids=["SQL_ASCII", "LATIN1"],
)
def test_encodings_that_cannot_hold_every_text(pair, options, expected):
    name = psycopg.conninfo.conninfo_to_dict(pair.target_dsn)["dbname"] + "_encoded"
    target_dsn = create_database(pair.target_dsn, name, options)
    try:
        sides = Sides(pair.source_dsn, target_dsn)
        sides.both(PLAIN)
        assert expected in sides.check().bad()
    finally:
        with psycopg.connect(pair.target_dsn, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {name}")


def test_another_order_of_texts_is_a_warning(pair):
    name = psycopg.conninfo.conninfo_to_dict(pair.target_dsn)["dbname"] + "_sorted"
    target_dsn = create_database(pair.target_dsn, name, "ENCODING 'UTF8' LOCALE 'POSIX'")
    try:
        sides = Sides(pair.source_dsn, target_dsn)
        sides.both(PLAIN)
        assert sides.check().status("collation") == {"warn"}
    finally:
        with psycopg.connect(pair.target_dsn, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {name}")


def test_one_side_that_is_away_does_not_hide_the_other(sides):
    sides.both(PLAIN)
    found = sides.check(source_dsn="host=127.0.0.1 port=1 user=x")
    assert [(c.side, c.status.value) for c in found.named("connection")] == [("source", "fail"), ("target", "pass")]
    assert [c.side for c in found.named("skipped")] == ["source"]
    assert found.status("state_schema") == {"pass"}
    assert not found.named("wal_level")


def test_what_is_known_by_comparing_both_sides_is_not_guessed_from_one(sides):
    """Without the target nobody can tell whose slot it is."""
    sides.both(PLAIN)
    sides.source("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", sides.slot)
    found = sides.check(target_dsn="host=127.0.0.1 port=1 user=x")
    assert found.bad() == {("connection", "fail"), ("skipped", "warn")}


def test_a_check_that_cannot_be_made_does_not_hide_the_others(sides, monkeypatch):
    sides.both(PLAIN)
    monkeypatch.setattr(source_server, "setting", lambda conn, _: conn.execute("SELECT nonsense"))
    found = sides.check()
    assert found.status("wal_level") == {"fail"}
    assert "could not be checked" in found.text("wal_level")
    assert found.status("role_replication") == {"pass"}
    assert found.status("select") == {"pass"}


SUPABASE = "postgresql://postgres@db.abcdefgh.supabase.co:5432/postgres"


@pytest.mark.parametrize(
    "error, dsn, hint",
    [
        (ConfigError("could not translate host name", hint="correct the host"), SUPABASE, "IPv6"),
        (TransientError("connection failed: Network is unreachable"), SUPABASE, "IPv6"),
        (ConfigError("could not translate host name", hint="correct the host"), "host=db.local", "correct the host"),
        (TransientError("connection refused"), SUPABASE, "see that the server is up"),
        (ConfigError("wrong password", hint="correct it"), SUPABASE, "correct it"),
    ],
)
def test_a_direct_host_that_cannot_be_reached_is_probably_a_matter_of_ipv6(error, dsn, hint):
    assert hint in run._connection_remedy(error, dsn)
