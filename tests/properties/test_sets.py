"""The applier on a real server: changes as sets, in parts, or one at a time leave the same rows behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from replicator.config import Settings
from replicator.model.row import Field
from replicator.postgres.connection import Connection, connect
from replicator.routes import require_routes
from replicator.routing.idmap import IdMaps
from replicator.stream.applier import Applier
from replicator.stream.batch import Batch, Event, Truncation, Unmap
from replicator.stream.quarantine import Quarantine
from replicator.stream.relations import RoutedTable
from tests.conftest import DatabasePair
from tests.properties.world import empty
from tests.stream.history import DEFAULTED, TABLES, World, apply_event, histories, plain
from tests.stream.made import routed, row

DDL = """
CREATE TABLE keyed (id int PRIMARY KEY, a int, b int);
CREATE TABLE seat (b int, id int PRIMARY KEY, a int UNIQUE);
CREATE TABLE wide (id int, a int, b int, PRIMARY KEY (b, id));
CREATE TABLE defaulted (id int PRIMARY KEY, a int, b int);
CREATE TABLE bag (id int, a int, b int);
ALTER TABLE bag REPLICA IDENTITY FULL;
"""
TARGET_DDL = DDL.replace("CREATE TABLE defaulted (", "CREATE TABLE defaulted (kept text DEFAULT 'default', ")


class Site:
    """The tables of the histories on a target, and an applier; nothing is committed but the rows to begin with."""

    def __init__(self, pair: DatabasePair, *, replica_role: bool) -> None:
        for dsn, ddl in ((pair.source_dsn, DDL), (pair.target_dsn, TARGET_DDL)):
            empty(dsn)
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute(ddl)
        given_settings = Settings(source={"dsn": pair.source_dsn}, target={"dsn": pair.target_dsn})  # type: ignore[arg-type]
        self.conn: Connection = connect(pair.target_dsn, "target", purpose="test")
        with connect(pair.source_dsn, "source", purpose="test") as source:
            routes = require_routes(given_settings, source, self.conn)
        if replica_role:
            self.conn.execute("SET session_replication_role = replica")
        self.tables: dict[str, RoutedTable] = {str(route): routed(route) for route in routes}
        self.replica_role, self.routes = replica_role, routes
        self.applier = Applier(
            self.conn,
            routes,
            maps=IdMaps(),
            open_source=lambda: self.conn,
            replica_role=replica_role,
            quarantine=Quarantine(self.conn, "none", routes, takes=False, limit=0, live=False),
            upcoming=lambda: None,
        )

    def begin_with(self, world: World) -> None:
        self.conn.execute("TRUNCATE public.keyed, public.seat, public.wide, public.defaulted, public.bag")
        for name in TABLES:
            for fields, extra in world[name].values() if name != "bag" else ():
                columns = ["id", "a", "b"] + ["kept"] * bool(extra)
                values = [*map(number, fields), *[extra] * bool(extra)]
                self.conn.execute(
                    sql.SQL("INSERT INTO public.{} ({}) VALUES ({})").format(
                        sql.Identifier(name),
                        sql.SQL(", ").join(map(sql.Identifier, columns)),
                        sql.SQL(", ").join(map(sql.Literal, values)),
                    )
                )

    def after(self, batches: Sequence[Sequence[Event]]) -> World:
        """The tables once these are applied, all in one transaction."""
        try:
            for at, events in enumerate(batches, start=1):
                self.applier.apply(Batch(events=[self._real(event) for event in events], complete=at == len(batches)))
            return self._read()
        finally:
            self.applier.rollback()

    def _real(self, event: Event) -> Event:
        if isinstance(event, Truncation):
            return Truncation(tuple(self.tables[str(table)] for table in event.tables), False)
        assert not isinstance(event, Unmap)
        op, table, old_key, new = event
        real = self.tables[str(table)]
        if new is not None and real.route.target_columns != ("id", "a", "b"):
            new = tuple(new[("id", "a", "b").index(name)] for name in real.route.target_columns)
        return (op, real, old_key, new)

    def _read(self) -> World:
        world: World = {}
        for name, table in TABLES.items():
            extra = "kept" if table is DEFAULTED else "''"
            found = self.conn.execute(f"SELECT id, a, b, {extra} FROM public.{name}").fetchall()  # type: ignore[arg-type]
            rows = [(row(*fields), kept) for *fields, kept in found]
            world[name] = {table.key_of(one): (one, kept) for one, kept in rows} if table.has_key else Counter(
                one for one, _ in rows)  # fmt: skip
            assert len(rows) == (len(world[name]) if table.has_key else world[name].total())
        return world


def number(value: Field) -> int | None:
    return None if value == row(None)[0] else int.from_bytes(value[4:], "big", signed=True)


@pytest.fixture(params=[True, False], ids=["replica role", "live constraints"])
def site(request: pytest.FixtureRequest, pair: DatabasePair) -> Iterator[Site]:
    made = Site(pair, replica_role=request.param)
    yield made
    made.conn.close()


def test_sets_parts_and_single_changes_do_the_same(site):
    check(site, examples=40, fixed=True)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_sets_parts_and_single_changes_do_the_same_many_times(site):
    check(site, examples=3000, fixed=False)


def check(site: Site, *, examples: int, fixed: bool) -> None:
    common: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

    @settings(max_examples=examples, derandomize=fixed, print_blob=True, **common)
    @given(histories(), st.integers(1, 7))
    def sets_do_what_single_changes_do(history: tuple[World, list[Event]], part: int) -> None:
        world, events = history
        site.begin_with(world)
        for event in events:
            apply_event(world, event)
        expected = plain(world)
        assert site.after([events]) == expected, "as one set"
        parts = [events[at : at + part] for at in range(0, len(events), part)]
        assert site.after(parts) == expected, "in parts"
        assert site.after([[event] for event in events]) == expected, "one at a time"

    sets_do_what_single_changes_do()
