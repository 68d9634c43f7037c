"""Private servers copied from a template: to initialize one takes longer than many a test that needs one."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import psycopg
from psycopg import sql

from replicator.demo.installations import find_installations, server_account
from replicator.demo.servers import Server

# A database is 300 files: on a disk a new one took 0.3 s, most of what many a test takes; here it takes 0.02 s.
MEMORY = Path("/dev/shm")
_ENOUGH_BYTES = 4 << 30
_IN_MEMORY = {"max_wal_size": "512MB"}
# A password is hashed 4096 times by whoever connects, and tests connect all the time.
_QUICK_LOGIN = {"scram_iterations": "1"}

_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected


class CopiedServer(Server):
    """Like a `Server`, with a ``system_identifier`` and a password of its own: both tell servers apart.

    It lies in memory where there is room, unless it is to be durable.
    """

    @classmethod
    def start(
        cls,
        major: int,
        *,
        settings: Mapping[str, str] | None = None,
        durable: bool = False,
        parent: Path | None = None,
    ) -> Self:
        if parent is None and not durable:
            parent = memory()
        own = (_IN_MEMORY if parent == MEMORY else {}) | (_QUICK_LOGIN if major >= 16 else {})
        server = super().start(major, settings=own | dict(settings or {}), durable=durable, parent=parent)
        password = secrets.token_urlsafe(16)
        with psycopg.connect(server.socket_dsn) as conn:
            conn.execute(sql.SQL("ALTER ROLE postgres PASSWORD {}").format(sql.Literal(password)))
        server.password = password
        return server

    def create_database(self, name: str) -> str:
        # Written to the WAL, which is the default, it takes twice as long.
        strategy = sql.SQL("STRATEGY file_copy" if self.major >= 15 else "")
        with psycopg.connect(self.dsn(), autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), strategy))
        return self.dsn(name)

    def _initdb(self, settings: Mapping[str, str]) -> None:
        template = _template(self.major)
        self.password = template.password
        self._run("cp", "-a", str(template.data_directory), str(self.data_directory))
        control = self.data_directory / "global" / "pg_control"
        control.write_bytes(with_identifier(control.read_bytes(), secrets.randbits(63)))
        # The WAL names the identifier too.
        self._run(str(self._bin_dir / "pg_resetwal"), "-f", "-D", str(self.data_directory))
        self._configure(settings)

    def _run(self, *command: str) -> None:
        process = self._popen([*command], stdin=subprocess.DEVNULL, output=subprocess.PIPE)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output.decode()


@functools.cache
def _template(major: int) -> Server:
    """Initialized, never started; gone with this process."""
    return Server(major, find_installations()[major], server_account(), {})


def memory() -> Path | None:
    """A directory in memory with room for a server; None: there is none."""
    is_there = MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
    return MEMORY if is_there and shutil.disk_usage(MEMORY).free >= _ENOUGH_BYTES else None


def with_identifier(control: bytes, identifier: int) -> bytes:
    """The contents of ``pg_control`` with another ``system_identifier``, its first field; the checksum is its last."""
    length = _length(control)
    body = struct.pack("=Q", identifier) + control[8:length]
    return body + struct.pack("=I", _crc(body)) + control[length + 4 :]


def _length(control: bytes) -> int:
    """Of what the checksum is of: its place differs between versions."""
    crc = 0xFFFFFFFF
    for at, byte in enumerate(control[:512]):
        if struct.unpack_from("=I", control, at)[0] == crc ^ 0xFFFFFFFF and at % 4 == 0 and at:
            return at
        crc = _step(crc, byte)
    raise AssertionError("no checksum in pg_control")


def _crc(data: bytes) -> int:
    return functools.reduce(_step, data, 0xFFFFFFFF) ^ 0xFFFFFFFF


def _step(crc: int, byte: int) -> int:
    crc ^= byte
    for _ in range(8):
        crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc
