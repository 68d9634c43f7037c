"""The proxy does to connections what it says: else the tests that rest on it show nothing."""

import socket
import time

import psycopg
import pytest

from tests.faults.proxy import Proxy

SLOW = "SELECT repeat('x', 100000)"


@pytest.fixture
def proxy(pair):
    with Proxy(psycopg.conninfo.conninfo_to_dict(pair.source_dsn)["port"]) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy, pair):
    opened = []

    def connect(name="one", **options):
        conn = psycopg.connect(proxy.dsn(pair.source_dsn), application_name=name, autocommit=True, **options)
        opened.append(conn)
        return conn

    yield connect
    proxy.close()
    for conn in opened:
        conn.close()


def one(conn, statement="SELECT 1"):
    return conn.execute(statement).fetchall()[0][0]


def backends(pair):
    with psycopg.connect(pair.source_dsn) as conn:
        return [name for (name,) in conn.execute(
            "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() ORDER BY 1")]  # fmt: skip


def stays_silent(conn, seconds=0.3):
    """Whether nothing comes, not even an end."""
    with socket.socket(fileno=socket.dup(conn.fileno())) as line:
        line.settimeout(seconds)
        try:
            line.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        return False


def test_everything_passes(proxy, connect):
    conn = connect()
    assert len(one(conn, "SELECT repeat('x', 3000000)")) == 3_000_000
    assert one(conn, f"SELECT length('{'y' * 1_000_000}')") == 1_000_000
    [link] = proxy.links("one")
    assert link.passed["to_client"] > 3_000_000 and link.passed["to_server"] > 1_000_000
    conn.close()
    wait_for(lambda: not proxy.links())


@pytest.mark.parametrize("reset", [True, False], ids=["rst", "fin"])
def test_cut_ends_both_sides(proxy, connect, pair, reset):
    conn, other = connect("one"), connect("two")
    assert proxy.cut(only="one", reset=reset) == 1
    with pytest.raises(psycopg.OperationalError):
        one(conn)
    wait_for(lambda: backends(pair) == ["two"])
    assert one(other) == 1


def test_stalled_bytes_are_held_and_delivered(proxy, connect):
    conn = connect()
    proxy.stall("to_client", only="one")
    conn.pgconn.send_query(b"SELECT 1")
    assert stays_silent(conn)
    assert one(connect("two")) == 1
    proxy.resume()
    assert not stays_silent(conn, 10)


def test_a_stall_holds_new_connections(proxy, connect):
    proxy.stall()
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        connect(connect_timeout=2)


def test_half_open_towards_the_client(proxy, connect, pair):
    conn = connect()
    proxy.half_open("server")
    wait_for(lambda: backends(pair) == [])
    conn.pgconn.send_query(b"SELECT 1")
    assert stays_silent(conn)
    assert one(connect("two")) == 1


def test_half_open_towards_the_server(proxy, connect, pair):
    conn = connect()
    proxy.half_open("client")
    with pytest.raises(psycopg.OperationalError):
        one(conn)
    time.sleep(0.2)
    assert backends(pair) == ["one"]


def test_silence_keeps_both_sides(proxy, connect, pair):
    conn = connect()
    proxy.silence()
    conn.pgconn.send_query(b"SELECT 1")
    assert stays_silent(conn)
    assert backends(pair) == ["one"]


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_reset_in_the_middle_of_a_message(proxy, connect, direction):
    conn = connect()
    [link] = proxy.links("one")
    before = link.passed[direction]
    trap = proxy.reset_after(50_000, direction, only="one")
    with pytest.raises(psycopg.OperationalError):
        one(conn, SLOW if direction == "to_client" else f"SELECT length('{'y' * 100_000}')")
    trap.wait()
    assert link.passed[direction] - before == 50_000
    assert one(connect()) == 1


def test_a_lost_answer_was_an_answer(proxy, connect, pair):
    conn = connect()
    conn.execute("CREATE TABLE t (n int)")
    trap = proxy.lose_answer(only="one")
    with pytest.raises(psycopg.OperationalError), conn.transaction():
        conn.execute("INSERT INTO t VALUES (1)")
    trap.wait()
    assert one(connect(), "SELECT count(*) FROM t") == 1


def test_a_lost_request_was_never_made(proxy, connect):
    conn = connect()
    conn.execute("CREATE TABLE t (n int)")
    trap = proxy.lose_request(only="one")
    with pytest.raises(psycopg.OperationalError), conn.transaction():
        conn.execute("INSERT INTO t VALUES (1)")
    trap.wait()
    assert one(connect(), "SELECT count(*) FROM t") == 0


def test_an_answer_lost_in_silence(proxy, connect, pair):
    conn = connect()
    trap = proxy.lose_answer(b"SELECT 1\0", silence=True)
    conn.pgconn.send_query(b"SELECT 7")
    trap.wait()
    conn.pgconn.consume_input()
    assert stays_silent(conn)
    assert backends(pair) == ["one"]


def test_slow_drip(proxy, connect):
    conn = connect()
    proxy.drip(100_000)
    began = time.monotonic()
    one(conn, SLOW)
    assert 0.7 < time.monotonic() - began < 10
    proxy.resume()


def test_delay(proxy, connect):
    conn = connect()
    proxy.delay(0.3, "to_client")
    began = time.monotonic()
    one(conn)
    assert 0.3 <= time.monotonic() - began < 5


def test_refused_connections(proxy, connect):
    conn = connect()
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect()
    assert one(conn) == 1
    proxy.resume()
    assert one(connect()) == 1


def wait_for(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
