"""Sessions are pinned, errors sorted by remedy, and nothing secret is quoted."""

from __future__ import annotations

import threading

import psycopg
import pytest
from psycopg import conninfo, errors, sql

from replicator.errors import ConfigError, ReplicatorError, SlotLost, TransientError
from replicator.postgres.connection import connect, query, translate, translated
from replicator.postgres.placeholders import with_placeholders
from tests.conftest import ALL_MAJORS

PINS = {
    "client_encoding": "UTF8", "DateStyle": "ISO", "TimeZone": "UTC", "statement_timeout": "0", "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0", "search_path": "", "default_transaction_read_only": "off",
    "IntervalStyle": "postgres", "extra_float_digits": "3",
}  # fmt: skip


@pytest.fixture
def hostile(database):
    """A database whose settings would change what we read and write."""
    with psycopg.connect(database, autocommit=True) as conn:
        for name, value in {
            "DateStyle": "German", "TimeZone": "Asia/Tokyo", "statement_timeout": "7s", "lock_timeout": "7s",
            "idle_in_transaction_session_timeout": "7s", "search_path": "pg_temp",
            "default_transaction_read_only": "on",
            "IntervalStyle": "sql_standard", "extra_float_digits": "-5", "row_security": "on",
            "synchronous_commit": "off",
            "client_encoding": "LATIN1", "default_transaction_isolation": "serializable",
        }.items():  # fmt: skip
            conn.execute(f"ALTER DATABASE {conn.info.dbname} SET {name} = '{value}'")
    return database


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_invariant_10_sessions_are_pinned(hostile):
    """Whatever database, role or service file say; replication sessions too."""
    for side, own in (("source", {"row_security": "off"}), ("target", {"synchronous_commit": "on"})):
        with connect(hostile, side, purpose="test") as conn:  # type: ignore[arg-type]
            for name, value in (PINS | own).items():
                [(found,)] = query(conn, f"SHOW {name}")
                assert found.partition(",")[0].strip('"') == value, name
            assert query(conn, "SHOW transaction_isolation") == [("read committed",)]
    with connect(hostile, "source", purpose="test", replication=True) as conn:
        for name in ("client_encoding", "TimeZone", "statement_timeout", "row_security"):
            [(value,)] = conn.execute(f"SHOW {name}").fetchall()
            assert value == (PINS | {"row_security": "off"})[name]


def test_sessions_say_what_they_are_for(database):
    with connect(database, "source", purpose="x" * 100) as conn:
        [(name,)] = query(conn, "SELECT current_setting('application_name')")
    assert name == ("replicator " + "x" * 100)[:63]


def with_dsn(database, **parameters):
    return conninfo.make_conninfo(database, **parameters)


def test_what_is_wrong_with_a_dsn(database):
    cases = [
        ("", ConfigError, "no DSN for the source"),
        ("postgresql://u:hunter2@h/d?nonsense=1", ConfigError, "not a libpq connection string"),
        ("hunter2", ConfigError, "not a libpq connection string"),
        ("postgresql://u:hunter2@aws-0.pooler.supabase.com/d", ConfigError, "connection pooler"),
        ("postgresql://u:hunter2@db.x.supabase.co:6543/d", ConfigError, "connection pooler"),
        ("postgresql://u:hunt@er2@h/d", ConfigError, "another @"),
        ("postgresql://u:hunt@hunter2@h:1/d", ConfigError, "another @"),
        ("postgres://u:hunter2/x@h/d", ConfigError, "another @"),
        ("postgresql://u:/hunter2@h/d?sslmode=disable", ConfigError, "another @"),
        ("postgresql://u:hunter2%zz@h/d", ConfigError, "not a libpq connection string"),
        ("postgresql://u:x?hunter2&y@h:1/d%40x?user=a%40b", TransientError, "source: "),
        ("host=h password=x hunter2 dbname=d", ConfigError, "not a libpq connection string"),
        (with_dsn(database, dbname="absent_database"), ConfigError, "does not exist"),
        (with_dsn(database, host="127.0.0.1", port=1, password="hunter2"), TransientError, "source: "),
    ]
    for dsn, kind, fragment in cases:
        with pytest.raises(ReplicatorError) as caught:
            connect(dsn, "source", purpose="test")
        assert type(caught.value) is kind, (dsn, caught.value)
        assert fragment in caught.value.message
        assert "hunter2" not in caught.value.message + caught.value.hint


def test_a_wrong_password_and_a_role_that_may_not_replicate(pair):
    if not conninfo.conninfo_to_dict(pair.source_dsn).get("password"):
        pytest.skip("this server asks for no password")
    with pytest.raises(ConfigError, match="password authentication failed") as caught:
        connect(with_dsn(pair.source_dsn, password="hunter2"), "source", purpose="test")
    assert "hunter2" not in str(caught.value)
    role = "plain_" + conninfo.conninfo_to_dict(pair.source_dsn)["dbname"]
    pair.source.create_role(role)
    dsn = pair.source.dsn(conninfo.conninfo_to_dict(pair.source_dsn)["dbname"], role)
    with pytest.raises(
        ConfigError, match=r"permission denied to start WAL sender|must be superuser or replication"
    ) as caught:
        connect(dsn, "source", purpose="test", replication=True)
    assert "REPLICATION" in caught.value.hint


def failing(conn, statement):
    with pytest.raises(ReplicatorError) as caught, translated("target"):
        conn.execute(statement)
    return caught.value


def test_errors_by_remedy(database):
    with connect(database, "target", purpose="test") as conn:
        conn.execute("CREATE TABLE public.t (id int PRIMARY KEY, v text)")
        conn.execute("INSERT INTO public.t VALUES (1, 'secret-word')")
        conn.execute("SET statement_timeout = 50")
        assert type(failing(conn, "SELECT pg_sleep(5)")) is TransientError
        conn.execute("SET statement_timeout = 0; SET default_transaction_read_only = on")
        assert type(failing(conn, "INSERT INTO public.t VALUES (2)")) is TransientError
        conn.execute("SET default_transaction_read_only = off")
        duplicate = failing(conn, "INSERT INTO public.t SELECT 1, v FROM public.t")
        assert type(duplicate) is ReplicatorError
        assert "23505" in duplicate.message
        assert "secret" not in duplicate.message
        assert "(id)=(1)" not in duplicate.message
        conn.execute("SET ROLE pg_monitor")
        assert type(failing(conn, "SELECT * FROM public.t")) is ConfigError
        conn.execute("RESET ROLE")
        [(pid,)] = query(conn, "SELECT pg_backend_pid()")
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [pid])
        assert type(failing(conn, "SELECT 1")) is TransientError


VALUES_IN_MESSAGES = {
    "of the wrong type": "SELECT v::int FROM public.t",
    "no label of an enum": "SELECT v::public.mood FROM public.t",
    "no regular expression": "SELECT 'x' ~ ('(' || v) FROM public.t",
    "a literal": "SELECT 1 WHERE 'zwiebel' = AND",
    "raised": "SELECT public.complain(v, 'P0001') FROM public.t",
    "raised as a right": "SELECT public.complain(v, '42501') FROM public.t",
    "raised as a missing table": "SELECT public.complain(v, '42P01') FROM public.t",
    "raised as a shutdown": "SELECT public.complain(v, '57P01') FROM public.t",
    "raised as a lost slot": "SELECT public.complain(v, '55000') FROM public.t",
    "raised as a violation": "SELECT public.complain(v, '23505') FROM public.t",
    "dynamic SQL": "SELECT public.look(v) FROM public.t",
    "checked": "INSERT INTO public.t VALUES (2, 'zwiebel long')",
}


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_no_message_of_a_server_s_passes_on_a_value(database):
    with connect(database, "target", purpose="test") as conn:
        conn.execute("CREATE TABLE public.t (id int PRIMARY KEY, v text CHECK (length(v) < 10))")
        conn.execute("CREATE TYPE public.mood AS ENUM ('sad')")
        conn.execute("""
            CREATE FUNCTION public.complain(v text, code text) RETURNS text LANGUAGE plpgsql AS $$
            BEGIN
                RAISE EXCEPTION 'mind the %', v USING ERRCODE = code, CONSTRAINT = v, COLUMN = v, TABLE = v,
                    HINT = v, DETAIL = v;
            END $$;
            CREATE FUNCTION public.look(v text) RETURNS text LANGUAGE plpgsql AS $$
            BEGIN EXECUTE 'SELECT ' || v; RETURN v; END $$;
            INSERT INTO public.t VALUES (1, 'zwiebel');
        """)
        for name, statement in VALUES_IN_MESSAGES.items():
            error = failing(conn, statement)
            said = error.message + error.hint
            assert "zwiebel" not in said, name
            assert error.message.startswith("target: "), name
            assert len(error.message) > 20, name
        checked = failing(conn, VALUES_IN_MESSAGES["checked"])
        assert "CheckViolation at public.t, t_v_check (23514)" in checked.message
        assert "server's log" in checked.hint


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_what_a_server_says_of_names_and_rights_is_passed_on(database):
    with connect(database, "source", purpose="test") as conn:
        conn.execute("CREATE TABLE public.t (id int PRIMARY KEY, v text)")
        for statement, said in {
            "SELECT * FROM public.gone": 'relation "public.gone" does not exist',
            "SELECT gone FROM public.t": 'column "gone" does not exist',
            "COPY public.t (gone) TO STDOUT": 'column "gone" of relation "t" does not exist',
            "SELECT * FROM gone.t": 'relation "gone.t" does not exist',
            "CREATE TABLE public.t ()": 'relation "t" already exists',
            "SET ROLE pg_monitor; SELECT * FROM public.t": "permission denied for table t",
            "SET statement_timeout = 20; SELECT pg_sleep(5)": "canceling statement due to statement timeout",
        }.items():
            assert said in failing(conn, statement).message
            conn.execute("RESET ROLE; SET statement_timeout = 0")


def test_a_value_that_the_driver_cannot_convert_is_not_quoted():
    for exc in (errors.DataError("can't parse timestamp 'zwiebel'"), errors.ProgrammingError("zwiebel")):
        assert "zwiebel" not in translate(exc, "target").message


def test_a_deadlock_is_worth_a_retry(database):
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
    found: list[BaseException] = []
    barrier = threading.Barrier(2)

    def work(first: int) -> None:
        with connect(database, "target", purpose="test", autocommit=False) as conn:
            conn.execute("SET deadlock_timeout = '20ms'")
            conn.execute("SELECT FROM public.t WHERE id = %s FOR UPDATE", [first])
            barrier.wait()
            try:
                with translated("target"):
                    conn.execute("SELECT FROM public.t WHERE id = %s FOR UPDATE", [3 - first])
            except ReplicatorError as exc:
                found.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [type(exc) for exc in found] == [TransientError]


def test_our_own_errors_pass_untranslated():
    with pytest.raises(SlotLost, match="as it is"), translated("source"):
        raise SlotLost("as it is")
    assert type(translate(errors.InterfaceError("odd"), "source")) is ReplicatorError


def test_percent_signs_of_names_are_no_placeholders(database):
    statement = sql.SQL("SELECT {} FROM (VALUES (%s::int)) AS {} ({})").format(
        sql.Identifier("t%s", "100%"), sql.Identifier("t%s"), sql.SQL(", ").join([sql.Identifier("100%")])
    )
    with psycopg.connect(database) as conn:
        assert conn.execute(with_placeholders(statement), [7]).fetchall() == [(7,)]
