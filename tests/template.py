"""Private servers copied from a template: to initialize one takes longer than many a test that needs one."""

from __future__ import annotations

import functools
import secrets
import struct
import subprocess
from collections.abc import Mapping
from typing import Self

import psycopg
from psycopg import sql

from replicator.demo.installations import find_installations, server_account
from replicator.demo.servers import Server

_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected


class CopiedServer(Server):
    """Like a `Server`, with a ``system_identifier`` and a password of its own: both tell servers apart."""

    @classmethod
    def start(cls, major: int, *, settings: Mapping[str, str] | None = None, durable: bool = False) -> Self:
        server = super().start(major, settings=settings, durable=durable)
        password = secrets.token_urlsafe(16)
        with psycopg.connect(server.socket_dsn) as conn:
            conn.execute(sql.SQL("ALTER ROLE postgres PASSWORD {}").format(sql.Literal(password)))
        server.password = password
        return server

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
