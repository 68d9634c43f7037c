"""Embedded PostgreSQL servers: private, short-lived, and gone when this process is gone."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql

from replicator.demo.installations import (
    Account,
    find_installations,
    readable_installation,
    server_account,
)
from replicator.errors import ConfigError, ReplicatorError

__all__ = ["RoleAttribute", "Server", "StopMode", "find_installations", "free_port"]

StopMode = Literal["smart", "fast", "immediate"]
RoleAttribute = Literal["SUPERUSER", "REPLICATION", "BYPASSRLS", "CREATEDB", "CREATEROLE"]

_STOP_SIGNAL = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 60.0
_PORT_ATTEMPTS = 25
# Below the range that systems take for outgoing connections: nobody grabs the port during a restart.
_PORTS = range(20_000, 32_000)

_SETTINGS = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_connections": "100",
    "shared_buffers": "96MB",
    "max_wal_size": "2GB",
    "wal_sender_timeout": "60s",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %q%a ",
    "timezone": "UTC",
    "lc_messages": "C",
}
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "on", "full_page_writes": "off"}

# Outlives us only to clean up: our end of its stdin closes however we end, SIGKILL included.
# SIGCONT last, since a paused server takes the other signal only when it runs again.
_WATCHDOG = """
read -r _
pid=$(head -n 1 "$0/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ]; then
    kill -QUIT "$pid"; kill -CONT "$pid"
    for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" || break; sleep 0.5; done
fi 2>/dev/null
rm -rf "$0"
"""


class Server:
    """One PostgreSQL server on 127.0.0.1 with a private data directory.

    Every server is initialized on its own rather than copied from a template, which would save half a
    second: copies share one ``system_identifier``, and that is what tells two sources apart.

    Use it as a context manager, or call `remove` at the end. Not safe for several threads at once.
    """

    def __init__(
        self,
        major: int,
        bin_dir: Path,
        account: Account | None,
        settings: Mapping[str, str],
        *,
        parent: Path | None = None,
    ) -> None:
        """Prefer `start`: this prepares the data directory and starts nothing."""
        self.major = major
        self.password = secrets.token_urlsafe(16)
        self._account = account
        self._bin_dir = readable_installation(bin_dir, account)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._port_is_known = False
        self._directory = Path(tempfile.mkdtemp(prefix=f"rpg{major}-", dir=parent))
        if account is not None:
            os.chown(self._directory, account.uid, account.gid)
        self._watchdog = self._popen(
            ["/bin/sh", "-c", _WATCHDOG, str(self._directory)],
            stdin=subprocess.PIPE,
            output=subprocess.DEVNULL,
        )
        try:
            self._initdb(settings)
            self.port = free_port()
        except BaseException:
            self.remove()
            raise

    @classmethod
    def start(
        cls,
        major: int,
        *,
        settings: Mapping[str, str] | None = None,
        durable: bool = False,
        parent: Path | None = None,
    ) -> Self:
        """Initialize and start a server; returns when it accepts connections.

        Args:
            major: one of `find_installations`.
            settings: configuration parameters that override ours.
            durable: keep fsync and full_page_writes on, as a real server would.
            parent: where its directory is made; default: among the temporary files.

        Raises:
            ConfigError: no installation of this major.
            ReplicatorError: the server did not start; the hint ends with its log.
        """
        installations = find_installations()
        if major not in installations:
            raise ConfigError(
                f"no PostgreSQL {major} found on this machine",
                hint="install replicator[demo], or name directories of its programs in REPLICATOR_PG_BIN",
            )
        merged = _SETTINGS | ({} if durable else _NOT_DURABLE) | dict(settings or {})
        server = cls(major, installations[major], server_account(), merged, parent=parent)
        try:
            server.start_again()
        except BaseException:
            server.remove()
            raise
        return server

    # ── where it is ────────────────────────────────────────────────────────────────────────────────────

    @property
    def pid(self) -> int:
        """Process ID of the postmaster."""
        if self._process is None:
            raise ReplicatorError(f"PostgreSQL {self.major} on port {self.port} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the postmaster's process exists."""
        return self._process is not None and self._process.poll() is None

    @property
    def data_directory(self) -> Path:
        """The server's data directory."""
        return self._directory / "data"

    @property
    def socket_dsn(self) -> str:
        """URI of database postgres over the private Unix socket, where no password is asked."""
        return f"postgresql://postgres@/postgres?{urlencode({'host': str(self._directory), 'port': self.port})}"

    def dsn(self, dbname: str = "postgres", user: str = "postgres", **parameters: str | int) -> str:
        """URI of a database over TCP, password included; `parameters` are libpq's own."""
        login = f"{quote(user, safe='')}:{quote(self.password, safe='')}"
        query = f"?{urlencode(parameters, quote_via=quote)}" if parameters else ""
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(dbname, safe='')}{query}"

    def log_text(self) -> str:
        """Everything that the server has logged so far."""
        return (self._directory / "log").read_text("utf-8", "replace")

    # ── what it holds ──────────────────────────────────────────────────────────────────────────────────

    def create_database(self, name: str) -> str:
        """Create an empty database; returns its DSN."""
        with psycopg.connect(self.dsn(), autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.dsn(name)

    def create_role(self, name: str, *attributes: RoleAttribute) -> None:
        """Create a role that may log in, with the server's password, so that `dsn` works for it."""
        statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} {}").format(
            sql.Identifier(name),
            sql.Literal(self.password),
            sql.SQL(" ").join(sql.SQL(attribute) for attribute in attributes),
        )
        with psycopg.connect(self.dsn(), autocommit=True) as conn:
            conn.execute(statement)

    # ── its life ───────────────────────────────────────────────────────────────────────────────────────

    def start_again(self) -> None:
        """Start the stopped server on its old port; returns when it accepts connections."""
        if self.running:
            return
        for _ in range(_PORT_ATTEMPTS):
            self._launch()
            if self._wait_until_ready():
                self._port_is_known = True
                return
            if self._port_is_known:
                time.sleep(0.2)  # DSNs hold this port: wait for whoever took it
            else:
                self.port = free_port()
        raise ReplicatorError(f"PostgreSQL {self.major}: port {self.port} stays taken")

    def stop(self, mode: StopMode = "fast") -> None:
        """Shut down and wait for the end. ``smart`` waits for clients, ``fast`` disconnects them."""
        if self._process is None:
            return
        self._process.send_signal(_STOP_SIGNAL[mode])
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as exc:
            raise ReplicatorError(
                f"PostgreSQL {self.major} did not stop within {_STOP_TIMEOUT_S:.0f} s",
                hint="a client keeps it busy: stop it in mode immediate",
            ) from exc
        self._process = None

    def kill(self) -> None:
        """End without a checkpoint, as a crash would: the next start recovers from the WAL."""
        self.stop("immediate")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop, then start on the same port."""
        self.stop(mode)
        self.start_again()

    def pause(self) -> None:
        """Freeze every process of the server (Linux only): connections stay open and silent."""
        os.kill(self.pid, signal.SIGSTOP)  # first, so that it starts no further children
        for child in _children_of(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        for process in (*_children_of(self.pid), self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    def remove(self) -> None:
        """Stop the server at once and delete its directory; safe to repeat."""
        if self.running:
            self.resume()
            self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()
        self._watchdog.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────

    def _popen(self, command: list[str | Path], *, stdin: int, output: int | IO[bytes]) -> subprocess.Popen[bytes]:
        account = self._account
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},  # no PG* of ours
            start_new_session=True,  # Ctrl-C in our terminal is for us alone
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )

    def _initdb(self, settings: Mapping[str, str]) -> None:
        password_file = self._directory / "password"
        password_file.write_text(self.password)
        password_file.chmod(0o644)  # its directory is closed to others
        command: list[str | Path] = [
            self._bin_dir / "initdb", "-D", self.data_directory, "-U", "postgres", "-E", "UTF8", "--no-sync",
            "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password_file}",
        ]  # fmt: skip
        for locale in ("C.UTF-8", "C"):  # not every system has the first
            process = self._popen([*command, f"--locale={locale}"], stdin=subprocess.DEVNULL, output=subprocess.PIPE)
            output, _ = process.communicate()
            if process.returncode == 0:
                break
        else:
            raise ReplicatorError(f"initdb of PostgreSQL {self.major} failed", hint=output.decode()[-1000:])
        password_file.unlink()
        self._configure(settings)

    def _configure(self, settings: Mapping[str, str]) -> None:
        with (self.data_directory / "postgresql.conf").open("a") as configuration:
            for name, value in {**settings, "listen_addresses": "127.0.0.1"}.items():
                quoted = value.replace("'", "''")
                configuration.write(f"{name} = '{quoted}'\n")

    def _launch(self) -> None:
        command: list[str | Path] = [self._bin_dir / "postgres", "-D", self.data_directory]
        options: list[str | Path] = ["-k", self._directory, "-p", str(self.port)]
        with (self._directory / "log").open("ab") as log:
            self._log_start = log.tell()
            self._process = self._popen([*command, *options], stdin=subprocess.DEVNULL, output=log)

    def _wait_until_ready(self) -> bool:
        """Whether it accepts connections; False when its port was taken."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while self.running and time.monotonic() < deadline:
            try:
                psycopg.connect(self.dsn(), connect_timeout=5).close()
            except psycopg.OperationalError:
                time.sleep(0.02)
            else:
                return True
        log = self.log_text()[self._log_start :]
        if not self.running and "Address already in use" in log:
            return False
        raise ReplicatorError(f"PostgreSQL {self.major} did not start", hint=log[-2000:])


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on right now."""
    for port in random.SystemRandom().sample(_PORTS, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ReplicatorError("no free port on 127.0.0.1")


def _children_of(pid: int) -> list[int]:
    """Process IDs of the direct children, from /proc."""
    children = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended while we looked
        if int(fields[1]) == pid:
            children.append(int(entry.parent.name))
    return children
