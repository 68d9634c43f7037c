"""TLS from end to end: both servers verified, every session encrypted, and each fault told with its remedy."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from replicator.demo.servers import Server, find_installations
from replicator.errors import ConfigError
from replicator.postgres.connection import connect
from tests.access.tls import Authority, serve
from tests.refusals.site import Site

# The programs of the wheel are built without TLS.
MAJOR = 15
pytestmark = pytest.mark.skipif(
    MAJOR not in find_installations() or shutil.which("openssl") is None,
    reason="no server with TLS, or no openssl here",
)


@dataclass
class Encrypted:
    """A server that answers as ``localhost`` with a certificate of ``ca``."""

    server: Server
    ca: Authority
    other_ca: Authority
    directory: Path

    def dsn(self, dbname: str = "source", user: str = "postgres", host: str = "localhost", **parameters: str) -> str:
        chosen = {"sslmode": "verify-full", "sslrootcert": str(self.ca.crt), "hostaddr": "127.0.0.1"} | parameters
        base = self.server.dsn(dbname, user, **{name: value for name, value in chosen.items() if value})
        return base.replace("@127.0.0.1:", f"@{host}:")


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    directory = tmp_path_factory.mktemp("tls")
    ca, other = Authority(directory), Authority(directory, "other")
    with Server.start(MAJOR) as server:
        serve(server, ca.sign("localhost", names="DNS:localhost"), ca.crt)
        for name in ("source", "target"):
            server.create_database(name)
        server.create_role("by_certificate", "REPLICATION", "SUPERUSER")
        hba = server.data_directory / "pg_hba.conf"
        hba.write_text("hostssl all by_certificate 127.0.0.1/32 cert\n" + hba.read_text())
        with psycopg.connect(server.socket_dsn, autocommit=True) as conn:
            conn.execute("SELECT pg_reload_conf()")
        yield Encrypted(server, ca, other, directory)


@pytest.mark.parametrize("way", ["password", pytest.param("certificate", marks=pytest.mark.soak)])
def test_a_whole_move_over_verified_connections(encrypted: Encrypted, tmp_path: Path, way: str) -> None:
    """The replication session included; with `channel_binding=require`, or with a client's certificate."""
    parameters, user = {"channel_binding": "require"}, "postgres"
    if way == "certificate":
        mine = encrypted.ca.sign("by_certificate")
        parameters, user = {"sslcert": str(mine.crt), "sslkey": str(mine.key)}, "by_certificate"
    names = [f"{side}_{way}" for side in ("source", "target")]
    for name in names:
        encrypted.server.create_database(name)
    site = Site(tmp_path, *(encrypted.dsn(name, user, **parameters) for name in names), f"over_tls_{way}")
    site.fill()
    site.done("check")
    with site.service() as service:
        site.write()
        service.wait_until_caught_up()
        with psycopg.connect(encrypted.server.socket_dsn) as conn:
            rows = conn.execute(
                "SELECT application_name, ssl, backend_type FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)"
                " WHERE application_name LIKE 'replicator %'"
            ).fetchall()
        assert "walsender" in {kind for *_, kind in rows}
        assert all(ssl for _, ssl, _ in rows), rows
        site.done("cutover", "--yes")
        service.ends(0)
    site.close()
    readable = {"options": "-c default_transaction_read_only=off"}
    dsns = [encrypted.server.dsn(name) for name in names]
    with psycopg.connect(dsns[0], **readable) as source, psycopg.connect(dsns[1]) as target:
        for table in site.tables:
            count = f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {table} t"
            assert source.execute(count).fetchone() == target.execute(count).fetchone()
    site.done("teardown", "--yes")


def refused(dsn: str, message: str, remedy: str, *, replication: bool = False) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        connect(dsn, "source", purpose="test", replication=replication).close()
    assert remedy in caught.value.hint


@pytest.mark.parametrize("replication", [False, True], ids=["plain", "replication"])
def test_a_server_of_another_authority_is_refused(encrypted: Encrypted, replication: bool) -> None:
    dsn = encrypted.dsn(sslrootcert=str(encrypted.other_ca.crt))
    refused(dsn, "certificate verify failed", "sslrootcert", replication=replication)


def test_a_server_of_another_name_is_refused(encrypted: Encrypted) -> None:
    refused(encrypted.dsn(host="elsewhere.example.org"), "does not match host name", "by a name that")


def test_missing_files_and_wrong_ones_are_named(encrypted: Encrypted) -> None:
    mine, other = encrypted.ca.sign("postgres"), encrypted.ca.sign("somebody")
    refused(encrypted.dsn(sslrootcert="/nonexistent/ca.crt"), "root certificate file", "sslrootcert")
    refused(encrypted.dsn(sslcert=str(mine.crt), sslkey="/nonexistent/key"), "private key", "sslkey")
    refused(encrypted.dsn(sslcert=str(mine.crt), sslkey=str(other.key)), "private key", "ssl")
    other.key.chmod(0o644)
    refused(encrypted.dsn(sslcert=str(other.crt), sslkey=str(other.key)), "private key file", "chmod 600")


def test_a_role_of_certificates_needs_its_own(encrypted: Encrypted) -> None:
    refused(encrypted.dsn(user="by_certificate", sslcert="/none"), "valid client certificate", "sslcert")
    other = encrypted.ca.sign("another")
    dsn = encrypted.dsn(user="by_certificate", sslcert=str(other.crt), sslkey=str(other.key))
    refused(dsn, "certificate authentication failed", "CN")


def test_a_server_without_tls_is_refused_where_it_is_required(start_server: Callable[..., Server]) -> None:
    server = start_server(MAJOR)
    refused(server.dsn(sslmode="require"), "does not support SSL", "ssl = on")
    refused(server.dsn(sslmode="disable", channel_binding="require"), "channel binding", "needs TLS")


def test_an_expired_certificate_is_exit_2_for_the_user(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """By the command itself: one line, with what to look at."""
    server, ca = start_server(MAJOR), Authority(tmp_path)
    serve(server, ca.sign("localhost", names="DNS:localhost", days=-1), ca.crt)
    parameters = {"sslmode": "verify-full", "sslrootcert": str(ca.crt), "hostaddr": "127.0.0.1"}
    dsn = server.dsn("postgres", **parameters).replace("@127.0.0.1:", "@localhost:")
    site = Site(tmp_path, dsn, server.dsn("postgres", sslmode="require"), "tls")
    began = time.monotonic()
    ended = site.ends(2, "run", says=("certificate verify failed", "has not expired"))
    assert server.password not in ended.err
    assert time.monotonic() - began < 30, "no retries for what no retry cures"
