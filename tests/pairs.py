"""Which servers the tests run against, and how to get at them.

In this order: the DSNs of REPLICATOR_TEST_SOURCE_DSN and REPLICATOR_TEST_TARGET_DSN (superusers of running
servers), containers when a Docker engine answers, PostgreSQL's programs on this machine.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

import psycopg
from psycopg import conninfo, sql

from replicator.demo.servers import find_installations
from tests.template import CopiedServer

SOURCE_VARIABLE = "REPLICATOR_TEST_SOURCE_DSN"
TARGET_VARIABLE = "REPLICATOR_TEST_TARGET_DSN"

# (source major, target major); the first that is available is the default pair.
WANTED_PAIRS = ((16, 18), (15, 16), (18, 15), (16, 16))
CONTAINER_MAJORS = (14, 15, 16, 17, 18)


class TestServer(Protocol):
    """What every server can do, wherever it runs."""

    __test__ = False

    major: int

    def dsn(self, dbname: str = "postgres", user: str = "postgres", **parameters: str | int) -> str: ...

    def create_database(self, name: str) -> str: ...

    def create_role(self, name: str, *attributes: str) -> None: ...


@dataclass
class RemoteServer:
    """A server that somebody else runs: in a container, or named in the environment."""

    major: int
    base_dsn: str

    def dsn(self, dbname: str = "postgres", user: str = "", **parameters: str | int) -> str:
        known = {k: str(v) for k, v in conninfo.conninfo_to_dict(self.base_dsn).items() if v is not None}
        host, port, password = known.pop("host", ""), known.pop("port", "5432"), known.pop("password", "")
        superuser = known.pop("user", "postgres")
        known.pop("dbname", None)
        login = quote(superuser if user in ("", "postgres") else user, safe="")
        if password:
            login += ":" + quote(password, safe="")
        if host.startswith("/"):  # a socket directory
            known["host"], host = host, ""
        query = urlencode({**known, **parameters}, quote_via=quote)
        return f"postgresql://{login}@{host}:{port}/{quote(dbname, safe='')}" + (f"?{query}" if query else "")

    def create_database(self, name: str) -> str:
        with psycopg.connect(self.base_dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.dsn(name)

    def create_role(self, name: str, *attributes: str) -> None:
        password = conninfo.conninfo_to_dict(self.base_dsn).get("password") or ""
        with psycopg.connect(self.base_dsn, autocommit=True) as conn:
            conn.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} {}").format(
                    sql.Identifier(name), sql.Literal(password), sql.SQL(" ".join(attributes))
                )
            )


def environment_dsns() -> tuple[str, str] | None:
    """The DSNs of source and target from the environment, if both are set."""
    source, target = os.environ.get(SOURCE_VARIABLE, ""), os.environ.get(TARGET_VARIABLE, "")
    return (source, target) if source and target else None


def docker_answers() -> bool:
    """Whether a Docker engine answers a ping: asked over its socket, no client program is needed."""
    url = urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    try:
        if url.scheme == "unix":
            connection = socket.socket(socket.AF_UNIX)
            address: Any = url.path
        elif url.scheme in ("tcp", "http"):
            connection = socket.socket()
            address = (url.hostname, url.port or 2375)
        else:
            return False
        with connection:
            connection.settimeout(2)
            connection.connect(address)
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def available_pairs() -> list[tuple[int, int]]:
    """The pairs (source major, target major) to test, the default pair first; empty without servers."""
    dsns = environment_dsns()
    if dsns is not None:
        return [(server_major(dsns[0]), server_major(dsns[1]))]
    majors = set(find_installations()) | (set(CONTAINER_MAJORS) if docker_answers() else set())
    pairs = [pair for pair in WANTED_PAIRS if majors.issuperset(pair)]
    return pairs or [(major, major) for major in sorted(majors)][:1]


def server_major(dsn: str) -> int:
    with psycopg.connect(dsn, connect_timeout=10) as conn:
        return conn.info.server_version // 10_000


class Servers:
    """The servers of one test session, started when first asked for."""

    def __init__(self) -> None:
        self._servers: dict[tuple[int, int], TestServer] = {}
        self._closers: list[Callable[[], object]] = []
        self._docker = environment_dsns() is None and docker_answers()

    def pair(self, source_major: int, target_major: int) -> tuple[TestServer, TestServer]:
        """Source and target, always two servers."""
        dsns = environment_dsns()
        if dsns is not None:
            return RemoteServer(source_major, dsns[0]), RemoteServer(target_major, dsns[1])
        return self.get(source_major), self.get(target_major, int(source_major == target_major))

    def get(self, major: int, copy: int = 0) -> TestServer:
        """The session's server of a major; `copy` 1 is a second one of the same major."""
        if (major, copy) not in self._servers:
            self._servers[major, copy] = self._start(major)
        return self._servers[major, copy]

    def close(self) -> None:
        while self._closers:
            self._closers.pop()()

    def _start(self, major: int) -> TestServer:
        if self._docker:
            try:
                return self._start_container(major)
            except Exception as exc:  # no image and no network, say: the programs here may still do
                if major not in find_installations():
                    raise
                warnings.warn(f"no container of PostgreSQL {major} ({type(exc).__name__})", stacklevel=2)
        server = CopiedServer.start(major)
        self._closers.append(server.remove)
        return server

    def _start_container(self, major: int) -> TestServer:
        try:
            from testcontainers.community.postgres import PostgresContainer
        except ImportError:  # its older place
            from testcontainers.postgres import PostgresContainer

        container = PostgresContainer(
            f"postgres:{major}", username="postgres", password="postgres", dbname="postgres", driver=None
        ).with_command(
            "postgres -c wal_level=logical -c fsync=off -c full_page_writes=off -c max_wal_senders=20 "
            "-c max_replication_slots=20 -c timezone=UTC"
        )
        container.start()
        self._closers.append(container.stop)
        return RemoteServer(major, container.get_connection_url(driver=None))


def drop_database(server: TestServer, name: str) -> None:
    """Drop a database with its logical slots, whoever still uses them."""
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        for _ in range(100):
            slots = conn.execute(
                "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = %s", [name]
            ).fetchall()
            if not slots:
                break
            for slot_name, active_pid in slots:
                if active_pid is not None:
                    conn.execute("SELECT pg_terminate_backend(%s)", [active_pid])
                    conn.execute("SELECT pg_sleep(0.05)")
                    continue
                try:
                    conn.execute("SELECT pg_drop_replication_slot(%s)", [slot_name])
                except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
                    pass  # taken or dropped between the two statements: look again
        conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
