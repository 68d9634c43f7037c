"""PostgreSQL's own logical replication: CREATE SUBSCRIPTION, ``binary`` on, all other settings as they are."""

from __future__ import annotations

import time
from contextlib import suppress

import psycopg

from bench.lab import execute, source_lsn, value, wait_until
from bench.peers import Case, Measured

NAME = "native"  # of publication, subscription and slot


class _Subscription:
    name = "subscription"
    mapped: frozenset[str] = frozenset()
    target_dsn: str | None = None

    def __init__(self, case: Case) -> None:
        self._case, self.source_dsn = case, case.source_dsn

    def unavailable(self) -> str | None:
        return None

    def _create_target(self) -> float:
        """Tables with all their indexes: the subscription wants them. Returns: the seconds it took."""
        lab = self._case.lab
        self.target_dsn = lab.new_target("native")
        started = time.monotonic()
        lab.psql(self.target_dsn, self._case.schema or lab.dump_schema(self._case.source_dsn)[0])
        return time.monotonic() - started

    def _subscribe(self) -> None:
        """With the initial copy; returns when every table is ready."""
        assert self.target_dsn is not None
        tables = ", ".join(f'public."{name}"' for name in self._case.tables)
        execute(
            self._case.source_dsn,
            f"CREATE PUBLICATION {NAME} FOR TABLE {tables} WITH (publish_via_partition_root)",
        )
        execute(
            self.target_dsn,
            f"CREATE SUBSCRIPTION {NAME} CONNECTION '{self._case.source_dsn}' PUBLICATION {NAME} WITH (binary)",
        )
        wait_until(self.target_dsn, "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel")

    def clean(self) -> None:
        if self.target_dsn is None:
            return
        with suppress(psycopg.errors.UndefinedObject):
            execute(self.target_dsn, f"DROP SUBSCRIPTION {NAME}")
        execute(self._case.source_dsn, f"DROP PUBLICATION IF EXISTS {NAME}")
        self._case.lab.drop(self.target_dsn)
        self.target_dsn = None


class Snapshot(_Subscription):
    """The initial copy, until every table is ready."""

    def prepare(self) -> None:
        self._schema_s = self._create_target()

    def run(self) -> Measured:
        started = time.monotonic()
        self._subscribe()
        return Measured(time.monotonic() - started + self._schema_s, None, self._schema_s)


class Stream(_Subscription):
    """Catching up after a pause."""

    def prepare(self) -> None:
        self._create_target()
        self._subscribe()
        self.pause()

    def run(self) -> Measured:
        lsn = source_lsn(self._case.source_dsn)
        started = time.monotonic()
        self.resume()
        self.wait_for(lsn)
        seconds = time.monotonic() - started
        session_s = float(
            value(
                self._case.source_dsn,
                "SELECT extract(epoch FROM clock_timestamp() - backend_start) FROM pg_stat_replication"
                f" WHERE application_name = '{NAME}'",
            )
        )
        self.pause()
        return Measured(seconds, min(seconds, session_s))

    def resume(self) -> None:
        assert self.target_dsn is not None
        execute(self.target_dsn, f"ALTER SUBSCRIPTION {NAME} ENABLE")

    def commit_durably(self, durable: bool) -> None:
        """Whether rows are on the disk before they are visible; off is PostgreSQL's default for subscriptions."""
        assert self.target_dsn is not None
        execute(self.target_dsn, f"ALTER SUBSCRIPTION {NAME} SET (synchronous_commit = {'on' if durable else 'off'})")

    def wait_for(self, lsn: str) -> None:
        """Until it has applied up to here, as it reports itself."""
        wait_until(
            self._case.source_dsn,
            f"SELECT replay_lsn >= '{lsn}' FROM pg_stat_replication WHERE application_name = '{NAME}'",
        )

    def pause(self) -> None:
        assert self.target_dsn is not None
        execute(self.target_dsn, f"ALTER SUBSCRIPTION {NAME} DISABLE")
        wait_until(self._case.source_dsn, f"SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{NAME}'")
