"""Two databases whose every value, password and e-mail address is a marker, and commands whose every word is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.cli.command import environment
from tests.conftest import DatabasePair

VALUE = "q7zwiebelq7"
PASSWORD = "q7geheimq7"
USERS = [uuid.UUID(f"5ec2e75e-0000-4000-8000-00000000000{n}") for n in range(9)]
AMOUNT = 731_642_851_900
MARKERS = (VALUE, PASSWORD, "5ec2e75e", "7316428519", "5EC2E75E")
# With all that a URI has to encode and a keyword string has to quote.
HARD_PASSWORD = f"{PASSWORD}@:/?#[]% '\\\"&=+{PASSWORD}"

SCHEMA = """
    CREATE TYPE mood AS ENUM ('glad');
    CREATE TABLE people (
        id int PRIMARY KEY, email text UNIQUE, secret text, user_id uuid, amount bigint, note varchar(80), doc jsonb,
        mood mood, raw bytea
    );
    CREATE TABLE logs (at text, secret text);
    ALTER TABLE logs REPLICA IDENTITY FULL;
"""
# Shown nowhere on purpose: what `users import` and the map itself hold.
_MAY_HOLD_IDS = ("id_map", "unmapped_id", "quarantine")


def person(number: int, **columns: str) -> str:
    """An INSERT of one row, of markers alone but for its key."""
    given = {
        "email": f"'{VALUE}{number}@example.org'", "secret": f"'{VALUE}'", "user_id": f"'{USERS[number % 9]}'",
        "amount": str(AMOUNT + number), "note": f"'{VALUE}{VALUE}'", "doc": f"""'{{"{VALUE}": "{VALUE}"}}'""",
        "mood": "'glad'", "raw": f"'{VALUE}'",
    }  # fmt: skip
    given |= columns
    return f"INSERT INTO people (id, {', '.join(given)}) VALUES ({number}, {', '.join(given.values())})"


@dataclass
class Planted:
    """``said``: everything that came out of any command, by what it was."""

    directory: Path
    pair: DatabasePair
    source_dsn: str
    target_dsn: str
    slot: str
    said: list[tuple[str, str]] = field(default_factory=list)

    def sql(self, side: str, *statements: str) -> list[tuple[Any, ...]]:
        dsn = self.pair.source_dsn if side == "source" else self.pair.target_dsn
        rows: list[tuple[Any, ...]] = []
        with psycopg.connect(dsn, autocommit=True) as conn:
            for statement in statements:
                cursor = conn.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def settings(self, *, listen: str = "", more: str = "") -> None:
        """The target's DSN in the file, as keywords; the source's comes from the environment, as a URI."""
        dsn = self.target_dsn.replace("\\", "\\\\").replace('"', '\\"')
        (self.directory / "replicator.toml").write_text(
            f'[source]\nslot = "{self.slot}"\npublication = "{self.slot}"\n[target]\ndsn = "{dsn}"\n'
            f'[metrics]\nlisten = "{listen}"\n{more}'
        )

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        given = {"REPLICATOR_SOURCE__DSN": self.source_dsn} | variables
        return subprocess.Popen(
            [sys.executable, "-m", "replicator", "-v", *words],
            cwd=self.directory,
            env={name: value for name, value in environment(**given).items() if value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, *words: str, code: int = 0, says: str = "", **variables: str) -> str:
        """Run it to its end; what it said, which is kept."""
        process = self.start(*words, **variables)
        try:
            out, err = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        self.note(" ".join(word for word in words if PASSWORD not in word), out + err)
        assert process.returncode == code, f"{words[0]}: exit code {process.returncode}\n{out}\n{err}"
        assert says in out + err, out + err
        return out

    @contextmanager
    def service(self, *words: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
        process = self.start(*words, **variables)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                out, err = process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
            self.note("service", out + err)

    def note(self, what: str, text: str) -> None:
        self.said.append((what, text))

    def note_state(self) -> None:
        """What our schema on the target holds, as text."""
        for (table,) in self.sql("target", "SELECT tablename FROM pg_tables WHERE schemaname = 'replicator'"):
            if table not in _MAY_HOLD_IDS:
                rows = self.sql("target", f"SELECT t::text FROM replicator.{table} t")
                self.note(f"table {table}", str(rows))

    def assert_silent(self) -> None:
        """No marker in anything that was said so far."""
        assert self.said
        for what, text in self.said:
            for marker in MARKERS:
                if marker in text:
                    line = next(line for line in text.splitlines() if marker in line)
                    raise AssertionError(f"{what} says {marker}: {line[:600]}")
        self.said.clear()


def hard_dsns(pair: DatabasePair) -> tuple[str, str]:
    """DSNs of roles with `HARD_PASSWORD`: a URI for the source, keywords for the target."""
    dsns = []
    for dsn, server in ((pair.source_dsn, pair.source), (pair.target_dsn, pair.target)):
        role = f"planted_{conninfo_to_dict(dsn)['dbname']}"
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute(
                psycopg.sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(
                    psycopg.sql.Identifier(role), psycopg.sql.Literal(HARD_PASSWORD)
                )
            )
        dsns.append(make_conninfo(dsn, user=role, password=HARD_PASSWORD))
    known = conninfo_to_dict(dsns[0])
    host, options = str(known.get("host", "")), ""
    if host.startswith("/"):
        host, options = "", f"?host={quote(host, safe='')}"
    login = f"{known['user']}:{quote(HARD_PASSWORD, safe='')}"
    return f"postgresql://{login}@{host}:{known['port']}/{known['dbname']}{options}", dsns[1]


def drop_roles(pair: DatabasePair) -> None:
    for dsn, server in ((pair.source_dsn, pair.source), (pair.target_dsn, pair.target)):
        name = str(conninfo_to_dict(dsn)["dbname"])
        role = psycopg.sql.Identifier(f"planted_{name}")
        for database in (name, "postgres"):
            with psycopg.connect(server.dsn(database), autocommit=True) as conn:
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [f"planted_{name}"]
                )
                conn.execute(psycopg.sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(role))
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute(psycopg.sql.SQL("DROP ROLE {}").format(role))


def patched(directory: Path, code: str) -> str:
    """PYTHONPATH with which every Python process runs `code` at its start: faults that nobody foresaw."""
    place = directory / "patched"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(code)
    return f"{place}{os.pathsep}{environment()['PYTHONPATH']}"
