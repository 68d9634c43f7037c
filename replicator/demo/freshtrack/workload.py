"""Live writers on the source: applications that go on working while it is replicated."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import errors

from replicator.demo.freshtrack.inserts import PARENTS, Transaction
from replicator.demo.freshtrack.transactions import Transactions

# What concurrent writers do to each other: a row's parent is gone, a lock was held the other way round.
_CONFLICTS = (
    errors.ForeignKeyViolation,
    errors.UniqueViolation,
    errors.DeadlockDetected,
    errors.SerializationFailure,
)
# The server refuses: it is read-only, busy, shutting down or gone.
_REFUSALS = (errors.ReadOnlySqlTransaction, errors.LockNotAvailable, errors.QueryCanceled, psycopg.OperationalError)

_PAUSE_AFTER_REFUSAL_S = 0.05
_STOP_TIMEOUT_S = 10.0
_REFRESH_EVERY = 300  # transactions of a writer, after which it forgets rows that are gone


@dataclass(slots=True)
class Stats:
    """What the writers have done so far."""

    transactions: int = 0  # committed, with a change in them
    changes: Counter[str] = field(default_factory=Counter)  # rows by kind, committed; cascades are not counted
    by_name: Counter[str] = field(default_factory=Counter)  # attempted transactions by name
    rejected: int = 0  # the server refused: connection lost, read-only, lock timeout
    conflicts: int = 0  # another writer was in the way
    reconnects: int = 0
    last_commit: float = 0.0  # time.monotonic() of the last commit
    last_rejection: float = 0.0
    errors: list[Exception] = field(default_factory=list)  # anything else: there should be none


class Workload:
    """Writer threads with one connection each; a context manager that starts and stops them.

    They survive restarts of the server, refusals and each other. What they do follows from `seed`; how it
    interleaves does not. A second run on the same database wants another seed: keys follow from it too.
    """

    def __init__(
        self,
        dsn: str,
        seed: int,
        *,
        writers: int = 3,
        rate: float | None = None,
        extras: bool = False,
        lookup_churn: bool = False,
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            dsn: the source, its schema loaded and filled.
            rate: transactions per second of all writers together; None: as fast as they can.
            extras: write to the tables of `extras_schema` too.
            lookup_churn: delete profiles of users that calibrated_by and changed_by still hold. What the
                target keeps there then depends on the time: without it both sides agree at the end.
        """
        self.stats = Stats()
        self._dsn = dsn
        self._interval_s = writers / rate if rate else 0.0
        self._extras = extras
        self._lookup_churn = lookup_churn
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[int, psycopg.Connection[Any]] = {}
        self._threads = [
            threading.Thread(target=self._write, args=(number, Random(f"{seed}/{number}")), name=f"writer-{number}")
            for number in range(writers)
        ]

    def start(self) -> Self:
        """Start the writers."""
        for thread in self._threads:
            thread.daemon = True  # a writer that hangs must not keep the program from ending
            thread.start()
        return self

    def stop(self) -> Stats:
        """Let every writer finish its transaction, end them and return the final counts; safe to repeat."""
        self._stop.set()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self._hang_up()
            for thread in self._threads:
                thread.join(_STOP_TIMEOUT_S)
        return self.stats

    def wait_for(self, transactions: int, timeout_s: float = 60.0) -> None:
        """Return when that many transactions have been committed since the start.

        Raises:
            TimeoutError: they were not within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while self.stats.transactions < transactions:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.stats.transactions} of {transactions} transactions in {timeout_s:.0f} s")
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _write(self, number: int, rng: Random) -> None:
        transactions: Transactions | None = None
        next_at = time.monotonic()
        while not self._stop.is_set():
            try:
                with self._connect(number) as conn:
                    if transactions is None:
                        transactions = Transactions(rng, conn, extras=self._extras, lookup_churn=self._lookup_churn)
                    for count in itertools.count(1):
                        if self._stop.is_set() or conn.closed:
                            break
                        self._one(conn, transactions)
                        if count % _REFRESH_EVERY == 0:
                            transactions.forget_missing(conn)
                        next_at = max(next_at + self._interval_s, time.monotonic() - 1.0)
                        self._stop.wait(max(0.0, next_at - time.monotonic()))
            except psycopg.OperationalError:
                self._reject()
            except Exception as exc:  # the thread's last resort: reported instead of lost
                with self._lock:
                    self.stats.errors.append(exc)
                return

    def _connect(self, number: int) -> psycopg.Connection[Any]:
        conn = psycopg.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=5,
            application_name="freshtrack writer",
            options="-c lock_timeout=2s -c statement_timeout=30s",
        )
        with self._lock:
            self.stats.reconnects += number in self._connections
            self._connections[number] = conn
        return conn

    def _one(self, conn: psycopg.Connection[Any], transactions: Transactions) -> None:
        make, tx = transactions.choose(), Transaction(conn)
        with self._lock:
            self.stats.by_name[make.__name__] += 1
        try:
            with conn.transaction():
                make(tx)
        except _CONFLICTS:
            with self._lock:
                self.stats.conflicts += 1
            transactions.forget_missing(conn, PARENTS)
        except (*_REFUSALS, psycopg.Rollback):  # the latter comes out only where the rollback itself failed
            self._reject()
        except psycopg.Error as exc:
            with self._lock:
                self.stats.errors.append(exc)
        else:
            with self._lock:
                self.stats.transactions += bool(tx.changes)  # nothing left: it was rolled back
                self.stats.changes.update(tx.changes)
                self.stats.last_commit = time.monotonic()

    def _reject(self) -> None:
        with self._lock:
            self.stats.rejected += 1
            self.stats.last_rejection = time.monotonic()
        self._stop.wait(_PAUSE_AFTER_REFUSAL_S)

    def _hang_up(self) -> None:
        """Break connections to a server that does not answer: their threads wait for it."""
        for conn in list(self._connections.values()):
            try:
                with socket.socket(fileno=os.dup(conn.fileno())) as connection:
                    connection.shutdown(socket.SHUT_RDWR)
            except (OSError, psycopg.Error):
                continue  # closed already
