"""Writers beside FreshTrack's: a ledger whose balances always add up to 0, rows without a key, giant transactions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random
from typing import Any, Self

import psycopg
from psycopg import errors

Connection = psycopg.Connection[Any]

TABLES = ("accounts", "transfers", "notes", "bulk")
SCHEMA = """
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL, filler text);
CREATE TABLE transfers (
    id bigserial PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    origin int NOT NULL REFERENCES accounts,
    goal int NOT NULL REFERENCES accounts,
    amount numeric(12, 2) NOT NULL
);
CREATE INDEX ON transfers (origin);
CREATE INDEX ON transfers (goal, at DESC);
CREATE TABLE notes (topic int, text text);  -- no key, and many rows are equal
ALTER TABLE notes REPLICA IDENTITY FULL;
CREATE TABLE bulk (id bigserial PRIMARY KEY, batch int NOT NULL, note text);
CREATE INDEX ON bulk (batch);
CREATE INDEX bulk_note ON bulk (left(note, 20)) WHERE batch > 3;
"""
_ACCOUNTS = 200
_GONE = (psycopg.OperationalError, errors.ReadOnlySqlTransaction)


def fill(conn: Connection, *, wide_rows: int) -> None:
    """``wide_rows``: rows of about 2 kB for table bulk."""
    conn.execute("INSERT INTO accounts SELECT n, 0, repeat('f', 80) FROM generate_series(1, %s) AS n", [_ACCOUNTS])
    conn.execute("INSERT INTO notes SELECT n %% 7, 'note ' || n %% 3 FROM generate_series(1, 300) AS n", [])
    conn.execute(
        "INSERT INTO bulk (batch, note) SELECT n %% 10, repeat(md5(n::text), 60) FROM generate_series(1, %s) AS n",
        [wide_rows],
    )
    conn.execute("INSERT INTO bulk (batch, note) SELECT n %% 10, 'first' FROM generate_series(1, 12000) AS n", [])


class Ledger:
    """Writer threads; started and stopped like `replicator.demo.freshtrack.Workload`."""

    def __init__(self, dsn: str, seed: int, *, writers: int = 2, rate: float, giant_rows: int) -> None:
        self.commits = 0
        self.errors: list[Exception] = []
        self._dsn, self._rate, self._giant_rows = dsn, rate / writers, giant_rows
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(Random(f"{seed}/{number}"),), daemon=True)
            for number in range(writers)
        ]

    def start(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)
        assert not any(thread.is_alive() for thread in self._threads), "a writer does not end"

    def _write(self, rng: Random) -> None:
        makers: list[tuple[Callable[[Connection, Random], object], float]] = [
            (_transfer, 60), (_take_notes, 12), (_change_note, 8), (_drop_note, 5), (_bulk_in, 4), (_bulk_change, 4),
            (_bulk_out, 4), (_part_undone, 4), (self._giant, 0.15), (_empty, 0.3),
        ]  # fmt: skip
        choices, weights = [make for make, _ in makers], [weight for _, weight in makers]
        options = "-c lock_timeout=2s -c statement_timeout=60s"
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=5, options=options) as conn:
                    while not self._stop.wait(rng.expovariate(self._rate)):
                        with conn.transaction():
                            rng.choices(choices, weights)[0](conn, rng)
                        self.commits += 1
            except _GONE:
                self._stop.wait(0.1)
            except Exception as exc:
                self.errors.append(exc)
                return

    def _giant(self, conn: Connection, rng: Random) -> None:
        """Larger than any batch: applied in parts, seen whole or not at all."""
        batch = rng.randrange(100, 200)
        conn.execute(
            "INSERT INTO bulk (batch, note) SELECT %s, 'giant ' || n FROM generate_series(1, %s) AS n",
            [batch, rng.randrange(self._giant_rows // 2, self._giant_rows)],
        )
        conn.execute("UPDATE bulk SET note = note || ' changed' WHERE batch = %s AND id %% 10 = 0", [batch])
        conn.execute("DELETE FROM bulk WHERE batch = %s AND id %% 20 = 7", [batch])
        _transfer(conn, rng)


def _transfer(conn: Connection, rng: Random) -> None:
    """Both accounts in one order, so that writers do not deadlock."""
    origin, goal = rng.sample(range(1, _ACCOUNTS + 1), 2)
    amount = rng.randrange(1, 1000)
    for account, change in sorted(((origin, -amount), (goal, amount))):
        conn.execute("UPDATE accounts SET balance = balance + %s WHERE id = %s", [change, account])
    conn.execute("INSERT INTO transfers (origin, goal, amount) VALUES (%s, %s, %s)", [origin, goal, amount])


def _take_notes(conn: Connection, rng: Random) -> None:
    conn.execute(
        "INSERT INTO notes SELECT %s, %s FROM generate_series(1, %s)",
        [rng.choice((None, 1, 2)), rng.choice((None, "", "equal", "é" * 30)), rng.randrange(1, 4)],
    )


def _change_note(conn: Connection, rng: Random) -> None:
    """One of rows that may be equal."""
    conn.execute(
        "UPDATE notes SET text = %s WHERE ctid = (SELECT ctid FROM notes ORDER BY random() LIMIT 1)",
        [f"changed {rng.randrange(5)}"],
    )


def _drop_note(conn: Connection, rng: Random) -> None:
    conn.execute("DELETE FROM notes WHERE ctid = ANY (ARRAY(SELECT ctid FROM notes ORDER BY random() LIMIT 2))")


def _bulk_in(conn: Connection, rng: Random) -> None:
    rows = rng.choice((1, 20, 600))
    conn.execute(
        "INSERT INTO bulk (batch, note) SELECT %s, md5(n::text) FROM generate_series(1, %s) AS n",
        [rng.randrange(20), rows],
    )


def _bulk_change(conn: Connection, rng: Random) -> None:
    conn.execute(
        "UPDATE bulk SET note = left(note, 500) || %s WHERE batch = %s AND id %% 7 = %s",
        [f" {rng.randrange(1000)}", rng.randrange(20), rng.randrange(7)],
    )


def _bulk_out(conn: Connection, rng: Random) -> None:
    conn.execute("DELETE FROM bulk WHERE batch = %s AND id %% 3 = %s", [rng.randrange(20), rng.randrange(3)])


def _part_undone(conn: Connection, rng: Random) -> None:
    _transfer(conn, rng)
    with conn.transaction() as inner:
        _bulk_in(conn, rng)
        _take_notes(conn, rng)
        raise psycopg.Rollback(inner)


def _empty(conn: Connection, rng: Random) -> None:
    _take_notes(conn, rng)
    conn.execute("TRUNCATE bulk, notes" if rng.random() < 0.5 else "TRUNCATE notes")
    _take_notes(conn, rng)
    _bulk_in(conn, rng)
