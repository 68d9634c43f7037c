import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psycopg
import pytest

from replicator.demo import installations
from replicator.demo.installations import Account
from replicator.demo.servers import Server, find_installations
from replicator.errors import ConfigError, ReplicatorError
from tests.conftest import ALL_PAIRS

MAJORS = [pytest.param(major, id=f"pg{major}") for major in find_installations()]


@pytest.fixture
def start_server():
    """As everybody gets it, not copied from a template."""
    started = []

    def start(major, **options):
        started.append(Server.start(major, **options))
        return started[-1]

    yield start
    for server in started:
        server.remove()


def query(dsn, statement):
    with psycopg.connect(dsn) as conn:
        return conn.execute(statement).fetchone()[0]


@pytest.mark.parametrize("major", MAJORS)
def test_a_server_keeps_its_port_and_data_over_restart_and_crash(start_server, major):
    """Tests hold on to a DSN while they restart the server below it."""
    server = start_server(major, settings={"wal_sender_timeout": "7s"})
    dsn = server.create_database("app")
    with psycopg.connect(dsn) as conn:
        conn.execute("CREATE TABLE kept (n int)")
        conn.execute("INSERT INTO kept VALUES (1)")
    first_pid = server.pid

    server.restart()
    assert server.pid != first_pid
    assert query(dsn, "SELECT n FROM kept") == 1

    server.kill()
    assert not server.running
    with pytest.raises(psycopg.OperationalError):
        query(dsn, "SELECT 1")
    server.start_again()
    assert query(dsn, "SELECT n FROM kept") == 1
    assert "not properly shut down" in server.log_text()

    settings = {
        name: query(server.socket_dsn, f"SHOW {name}")
        for name in ("wal_level", "server_encoding", "wal_sender_timeout", "fsync", "listen_addresses")
    }
    assert settings == {
        "wal_level": "logical",
        "server_encoding": "UTF8",
        "wal_sender_timeout": "7s",
        "fsync": "off",
        "listen_addresses": "127.0.0.1",
    }
    assert query(server.dsn(), "SHOW server_version_num").startswith(str(major))


def test_a_paused_server_is_silent_and_can_be_removed(start_server):
    server = start_server(max(find_installations()), durable=True)
    directory, pid = server.data_directory.parent, server.pid
    assert query(server.dsn(), "SHOW fsync") == "on"
    with psycopg.connect(server.dsn()) as conn:
        server.pause()
        with pytest.raises(psycopg.OperationalError):
            query(server.dsn(connect_timeout=2), "SELECT 1")
        server.resume()
        assert conn.execute("SELECT 1").fetchone() == (1,)
    server.pause()
    server.remove()
    server.remove()
    assert not directory.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_tcp_asks_for_the_password(start_server):
    server = start_server(max(find_installations()))
    server.create_role("reader", "REPLICATION", "BYPASSRLS")
    assert query(server.dsn(user="reader"), "SELECT current_user") == "reader"
    assert query(server.dsn(), "SELECT rolreplication AND rolbypassrls FROM pg_roles WHERE rolname = 'reader'")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.dsn().replace(server.password, "wrong"))


def test_a_server_ends_with_its_owner(tmp_path):
    """Killed tests and demos must not leave servers or data behind."""
    script = textwrap.dedent(
        """
        import sys, time
        from replicator.demo.servers import Server
        server = Server.start(int(sys.argv[1]))
        print(server.pid, server.data_directory, flush=True)
        time.sleep(60)
        """
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(max(find_installations()))], stdout=subprocess.PIPE, text=True
    )
    pid, data_directory = owner.stdout.readline().split()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 20
    while (Path(f"/proc/{pid}").exists() or Path(data_directory).parent.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(data_directory).parent.exists()


def test_a_missing_major_says_what_to_install():
    with pytest.raises(ConfigError) as caught:
        Server.start(9)
    assert "REPLICATOR_PG_BIN" in caught.value.hint


def test_a_server_that_does_not_start_shows_its_log():
    with pytest.raises(ReplicatorError) as caught:
        Server.start(max(find_installations()), settings={"shared_buffers": "lots"})
    assert 'invalid value for parameter "shared_buffers"' in caught.value.hint


def test_the_first_installation_of_a_major_wins(monkeypatch, tmp_path):
    major, bin_dir = max(find_installations().items())
    (tmp_path / "bin").symlink_to(bin_dir)
    monkeypatch.setenv(installations.BIN_VARIABLE, os.pathsep.join([str(tmp_path / "none"), str(tmp_path / "bin")]))
    assert find_installations()[major] == tmp_path / "bin"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands its servers to another account")
def test_an_installation_out_of_reach_is_copied_once(monkeypatch, tmp_path):
    """A virtual environment below /root cannot be read by the account that runs the servers."""
    wheel = [path for path in find_installations().values() if "site-packages" in path.parts]
    if not wheel:
        pytest.skip("the wheel is not installed")
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    package = wheel[0].parent.parent
    for name in (package.name, f"{package.name}.libs"):
        (hidden / name).mkdir()
    subprocess.run(["cp", "-a", str(wheel[0].parent), str(hidden / package.name)], check=True)
    subprocess.run(["cp", "-a", f"{package}.libs", str(hidden)], check=True)
    account = installations.server_account()
    assert isinstance(account, Account)

    copy = installations.readable_installation(hidden / package.name / wheel[0].parent.name / "bin", account)
    try:
        assert hidden not in copy.parents
        again = installations.readable_installation(hidden / package.name / wheel[0].parent.name / "bin", account)
        assert again == copy
        monkeypatch.setenv(installations.BIN_VARIABLE, str(hidden / package.name / wheel[0].parent.name / "bin"))
        major = installations._major_of(copy)
        with Server.start(major) as server:
            assert query(server.dsn(), "SELECT 1") == 1
    finally:
        subprocess.run(["rm", "-rf", str(copy.parents[2])], check=True)


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_a_pair_is_two_empty_databases_on_two_servers(pair):
    for server, dsn in ((pair.source, pair.source_dsn), (pair.target, pair.target_dsn)):
        assert query(dsn, "SELECT current_setting('server_version_num')::int / 10000") == server.major
        assert query(dsn, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    identifier = "SELECT system_identifier FROM pg_control_system()"
    assert query(pair.source_dsn, identifier) != query(pair.target_dsn, identifier)
