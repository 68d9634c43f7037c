import http.server
import socketserver
import threading
from contextlib import closing

import psycopg
import pytest

from tests import pairs
from tests.oracle import assert_same_rows


@pytest.mark.parametrize(("status", "answers"), [(200, True), (500, False)])
def test_docker_is_asked_over_its_socket(monkeypatch, tmp_path, status, answers):
    """The client program may be installed where no engine runs."""

    class Engine(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/_ping" else 404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

        def address_string(self):
            return ""

    path = str(tmp_path / "docker.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with socketserver.UnixStreamServer(path, Engine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert pairs.docker_answers() is answers
        server.shutdown()


def test_no_docker_without_a_socket(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert not pairs.docker_answers()
    monkeypatch.setenv("DOCKER_HOST", "ssh://host")
    assert not pairs.docker_answers()


def test_servers_of_the_environment_come_first(monkeypatch, start_server):
    server = start_server(max(pairs.find_installations()))
    monkeypatch.setenv(pairs.SOURCE_VARIABLE, server.dsn())
    monkeypatch.setenv(pairs.TARGET_VARIABLE, server.socket_dsn)
    assert pairs.available_pairs() == [(server.major, server.major)]
    for remote in pairs.Servers().pair(*pairs.available_pairs()[0]):
        name = f"app {id(remote)}"
        with psycopg.connect(remote.create_database(name)) as conn:
            assert conn.info.dbname == name
        pairs.drop_database(remote, name)
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            psycopg.connect(remote.dsn(name))


def test_a_database_is_dropped_with_its_slots_in_use(servers):
    server = servers.get(max(pairs.find_installations()))
    dsn = server.create_database("leftover")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT pg_create_logical_replication_slot('leftover', 'pgoutput')")
        conn.execute("CREATE PUBLICATION leftover FOR ALL TABLES")
    with closing(psycopg.connect(dsn, autocommit=True, replication="database")) as replication:
        replication.pgconn.send_query(
            b"START_REPLICATION SLOT leftover LOGICAL 0/0 (proto_version '1', publication_names 'leftover')"
        )
        assert replication.pgconn.get_result().status == psycopg.pq.ExecStatus.COPY_BOTH
        pairs.drop_database(server, "leftover")
    with psycopg.connect(server.dsn()) as conn:
        assert conn.execute("SELECT FROM pg_replication_slots WHERE slot_name = 'leftover'").fetchone() is None


def test_the_oracle_tells_null_blank_and_empty_apart(pair):
    """An oracle that cannot see a difference proves nothing."""
    with psycopg.connect(pair.source_dsn) as source, psycopg.connect(pair.target_dsn) as target:
        for conn in (source, target):
            conn.execute("CREATE TABLE t (id int, a text, b char(3), c float8, d timestamptz)")
            conn.execute(
                "INSERT INTO t VALUES (1, NULL, 'x', 0.1, '2024-01-01 00:00:00+00'), (2, '', NULL, -0.0, NULL)"
            )
        target.execute("SET TimeZone = 'Asia/Tokyo'")
        assert assert_same_rows(source, target, "t") == 2
        for change in ("a = ''", "b = 'x y'", "c = 0.1::float4", "d = d + '1 us'", "id = 3"):
            with target.transaction() as undo:
                target.execute(f"UPDATE t SET {change} WHERE id = 1")
                with pytest.raises(AssertionError, match="1 missing, 1 unexpected"):
                    assert_same_rows(source, target, "t")
                raise psycopg.Rollback(undo)
        target.execute("INSERT INTO t SELECT * FROM t WHERE id = 1")
        with pytest.raises(AssertionError, match="0 missing, 1 unexpected"):
            assert_same_rows(source, target, "t")
        assert assert_same_rows(source, target, "t", target_where="id = 2", source_where="id = 2") == 1
        mapped = {"id": "s.id + 10"}
        target.execute("DELETE FROM t")
        target.execute("INSERT INTO t (id) VALUES (11), (12)")
        assert assert_same_rows(source, target, "t", columns=["id"], source_columns=mapped) == 2
