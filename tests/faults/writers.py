"""Live writers on the source, and the tables that show whether a change was lost or came twice."""

from __future__ import annotations

import threading
from random import Random

import psycopg

TABLES = ("journal", "accounts", "lines")

# journal has no key: whatever is applied twice stays there twice.
DDL = """
CREATE TABLE journal (n bigint, note text);
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL, note text);
CREATE TABLE lines (id bigint PRIMARY KEY, account int NOT NULL REFERENCES accounts, body text);
CREATE INDEX ON lines (account);
"""
ROWS = """
INSERT INTO accounts SELECT n, n, 'account ' || n FROM generate_series(1, 200) AS n;
INSERT INTO lines SELECT -n, 1 + n % 200, repeat('x', 200) FROM generate_series(1, {rows}) AS n;
INSERT INTO journal SELECT -n, 'before' FROM generate_series(1, {rows} / 4) AS n;
"""


class Writer:
    """A thread that writes small transactions, now and then a larger one. A context manager."""

    def __init__(self, dsn: str, *, pause_s: float = 0.02, seed: int = 1) -> None:
        self._dsn, self._pause_s, self._random = dsn, pause_s, Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self.transactions = 0
        self.error: BaseException | None = None

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        """Reconnects: servers are stopped under it, and a cutover ends its sessions."""
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True) as conn:
                    while not self._stop.wait(self._pause_s):
                        self._write(conn)
                        self.transactions += 1
            except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction):
                self._stop.wait(0.1)
            except BaseException as exc:
                self.error = exc
                raise

    def _write(self, conn: psycopg.Connection[tuple[object, ...]]) -> None:
        number, rows = self.transactions, 400 if self.transactions % 25 == 24 else 3
        account = self._random.randint(1, 200)
        with conn.transaction():
            conn.execute("INSERT INTO journal SELECT %s, 'line ' || n FROM generate_series(1, %s) AS n", [number, rows])
            conn.execute("UPDATE accounts SET balance = balance + 1 WHERE id = %s", [account])
            conn.execute(
                "INSERT INTO lines SELECT (SELECT greatest(max(id), 0) FROM lines) + n, %s, repeat('y', 100)"
                " FROM generate_series(1, %s) AS n",
                [account, rows],
            )
            if number % 3 == 0:
                conn.execute("DELETE FROM lines WHERE id = (SELECT max(id) FROM lines WHERE account = %s)", [account])
