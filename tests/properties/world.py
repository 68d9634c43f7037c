"""Runs a plan on real servers: tables, snapshot or slot, stream, and both sides compared."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from replicator.postgres.connection import connect
from replicator.routes import require_routes
from replicator.target import state
from replicator.target.sequences import load_values, plan_sequences, set_sequences
from snapshot.run import run_snapshot
from tests.conftest import DatabasePair
from tests.oracle import assert_same_rows
from tests.properties.plans import Group, Plan
from tests.properties.schemas import Table
from tests.properties.transactions import Transaction
from tests.properties.values import FILLER, TYPES, literal
from tests.stream.case import Case

ROLE = "properties"


def prepare(pair: DatabasePair) -> None:
    """Once per pair of databases: types that stay, and a role without privileges of the server's."""
    pair.target.create_role(ROLE)
    for dsn, ddl in ((pair.source_dsn, TYPES), (pair.target_dsn, FILLER + TYPES)):
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(ddl)
    with psycopg.connect(pair.target_dsn, autocommit=True) as conn:
        conn.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(conn.info.dbname), sql.Identifier(ROLE))
        )


class World(Case):
    """A plan's tables on both sides of a pair that is emptied first."""

    def __init__(self, pair: DatabasePair, plan: Plan) -> None:
        self.plan = plan
        for dsn in (pair.source_dsn, pair.target_dsn):
            empty(dsn)
        super().__init__(
            pair,
            plan.schema.ddl(0, pair.source.major),
            plan.schema.ddl(1, pair.target.major),
            target_role=ROLE if plan.live else "",
            tables=[f"public.{table.name}" for table in plan.schema.tables],
            stream={"max_batch_rows": plan.batch_rows},
        )

    def _target_dsn(self, role: str) -> str:
        if not role:
            return self.pair.target_dsn
        self.target.execute(f"ALTER SCHEMA public OWNER TO {role}")
        return str(self.pair.target.dsn(self.target.info.dbname, role))

    def _make_slot(self) -> None:
        if self.plan.copied is None:
            super()._make_slot()
            return
        for transaction in self.plan.copied:
            self.run(transaction)
        with (
            connect(self.settings.target.dsn, "target", purpose="test") as writer,
            connect(self.settings.source.dsn, "source", purpose="test") as source,
        ):
            state.migrate(writer)
            routes = require_routes(self.settings, source, writer)
            assert run_snapshot(self.settings, routes, writer=writer, source=source, stop=threading.Event())
        self.compare()

    def run(self, transaction: Transaction) -> None:
        """On the source. Statements that it refuses are left out; a COMMIT that it refuses rolls back."""
        statements = list(transaction.statements)
        while not self._done(statements, commits=transaction.commits):
            pass

    def _done(self, statements: list[str], *, commits: bool) -> bool:
        self.source.execute("BEGIN")
        for at, statement in enumerate(statements):
            try:
                self.source.execute(statement)
            except psycopg.Error:
                self.source.execute("ROLLBACK")
                del statements[at]
                return False
        try:
            self.source.execute("COMMIT" if commits else "ROLLBACK")
        except psycopg.Error:
            self.source.execute("ROLLBACK")
        return True

    def play(self, group: Group) -> None:
        """One group, from its first transaction until both sides are equal."""
        with self._reaching(group.way):
            for transaction in group.transactions:
                self.run(transaction)
                if group.way == "one by one":
                    self.drain()
        self.drain()
        self.compare()

    @contextmanager
    def _reaching(self, way: str) -> Iterator[None]:
        if way in ("one batch", "stopped"):
            self.stop()
        if way == "one batch":
            with self.one_batch():
                yield
            return
        if way == "running" and self._thread is None:
            self.start()
        yield

    def stop(self) -> None:
        """What keeps on arriving wakes the stream's threads: they would sleep for a while before they see the stop."""
        if self._thread is not None:
            self._stop.set()
            while self._thread.is_alive():
                self.source.execute("SELECT pg_logical_emit_message(true, 'wake up', '')")
                self._thread.join(0.01)
            self._end()

    def compare(self) -> None:
        for table in self.plan.schema.tables:
            assert_same_rows(self.source, self.target, f"public.{table.name}", **_view(table))

    def compare_sequences(self) -> None:
        """As a cutover would set them."""
        with (
            connect(self.settings.target.dsn, "target", purpose="test") as writer,
            connect(self.settings.source.dsn, "source", purpose="test") as source,
        ):
            routes = require_routes(self.settings, source, writer)
            plan = plan_sequences(source, writer, routes)
            assert plan.faults == ()
            set_sequences(writer, plan.pairs, load_values(source, plan.pairs))
            for pair in plan.pairs:
                ask = sql.SQL("SELECT last_value, is_called FROM {}")
                [ours] = self.source.execute(ask.format(sql.Identifier(*pair.source.name))).fetchall()
                [theirs] = self.target.execute(ask.format(sql.Identifier(*pair.target.name))).fetchall()
                assert ours == theirs


def _view(table: Table) -> dict[str, Any]:
    return {
        "columns": [*table.common, *table.extra],
        "source_columns": dict.fromkeys(table.extra, "7"),
    }


def empty(dsn: str) -> None:
    """Everything but the types."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("""
            SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'
        """)
        conn.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()"
        )
        for (name,) in conn.execute("SELECT pubname::text FROM pg_publication").fetchall():
            conn.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name)))
        conn.execute("SET client_min_messages = warning")
        conn.execute("DROP SCHEMA IF EXISTS replicator CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        conn.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")


def kinds_of(pair: DatabasePair, candidates: list[Any]) -> tuple[str, ...]:
    """The types that both servers have: some are left out when PostgreSQL is built."""
    found: Counter[str] = Counter()
    for dsn in (pair.source_dsn, pair.target_dsn):
        with psycopg.connect(dsn, autocommit=True) as conn:
            for kind in candidates:
                try:
                    conn.execute(f"SELECT {', '.join(literal(kind, text) for text in kind.literals)}")
                except psycopg.errors.FeatureNotSupported:
                    continue
                found[kind.sql] += 1
    return tuple(kind.sql for kind in candidates if found[kind.sql] == 2)
