"""A certificate authority for one test, by the program openssl; and a private server that speaks TLS."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psycopg

from replicator.demo.servers import Server

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Certificate:
    """Paths of a certificate and its key, in PEM."""

    crt: Path
    key: Path


class Authority:
    """Signs what it is asked for."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory, self._name = directory, name
        self.crt = directory / f"{name}.crt"
        self._key = directory / f"{name}.key"
        openssl("req", "-x509", *_EC, "-keyout", self._key, "-out", self.crt, "-subj", f"/CN={name}", "-days", "2")

    def sign(self, subject: str, *, names: str = "", days: int = 2) -> Certificate:
        """``names``: as of subjectAltName, such as ``DNS:localhost``."""
        stem = self._directory / f"{self._name}-{subject}-{days}"
        found = Certificate(stem.with_suffix(".crt"), stem.with_suffix(".key"))
        request = stem.with_suffix(".csr")
        extension = ("-addext", f"subjectAltName={names}") if names else ()
        openssl("req", *_EC, "-keyout", found.key, "-out", request, "-subj", f"/CN={subject}", *extension)
        openssl(
            "x509", "-req", "-in", request, "-CA", self.crt, "-CAkey", self._key, "-CAcreateserial",
            "-copy_extensions", "copy", "-days", str(days), "-out", found.crt,
        )  # fmt: skip
        found.key.chmod(0o600)
        return found


def serve(server: Server, certificate: Certificate, clients: Path) -> None:
    """Let a server answer with this certificate, and trust clients' certificates of the authority ``clients``."""
    for source, name in ((certificate.crt, "server.crt"), (certificate.key, "server.key"), (clients, "clients.crt")):
        path = server.data_directory / name
        path.write_bytes(source.read_bytes())
        path.chmod(0o600)
        if server._account is not None:
            os.chown(path, server._account.uid, server._account.gid)
    with psycopg.connect(server.socket_dsn, autocommit=True) as conn:
        for name, value in {"ssl_ca_file": "clients.crt", "ssl": "on"}.items():
            conn.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        conn.execute("SELECT pg_reload_conf()")
        for _ in range(200):
            if conn.execute("SHOW ssl").fetchone() == ("on",):
                return
            conn.execute("SELECT pg_sleep(0.05)")
    raise AssertionError(server.log_text()[-2000:])
