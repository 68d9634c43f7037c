"""Run every check, each on its own: one that cannot be made does not hide the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import psycopg
from psycopg.conninfo import conninfo_to_dict

from replicator.config import Settings
from replicator.errors import ReplicatorError
from replicator.postgres.connection import Connection, Side, connect, translate
from replicator.preflight import (
    continuity,
    coverage,
    schemas,
    source_server,
    source_tables,
    target_server,
    target_tables,
)
from replicator.preflight.check import Check, Where, failed, passed, warned
from replicator.routing.route import Route
from replicator.survey import Recorded, load_recorded, merged, survey
from replicator.target.role import may_be_replica

_OLDEST = 140000


@dataclass(slots=True)
class _Lane:
    """One lane as far as it is known: nothing of a side that does not answer."""

    settings: Settings
    recorded: Recorded = field(default_factory=Recorded)
    routes: Sequence[Route] = ()

    def guarded(self, name: str, side: Where, check: Callable[[], Iterable[Check]]) -> Iterator[Check]:
        """The checks, which say whose they are where there are several lanes."""
        for each in _guarded(name, side, check):
            yield replace(each, message=self.settings.prefix + each.message)


def run_checks(settings: Settings) -> list[Check]:
    """Look at source and target; reads only, changes nothing. Never raises for what is wrong with a server."""
    checks: list[Check] = []
    lanes = [_Lane(each) for each in settings.split()]
    with contextlib.ExitStack() as stack:
        source = _open(stack, settings.source.dsn, "source", checks)
        target = _open(stack, settings.target.dsn, "target", checks)
        if target is not None:
            checks += _guarded("state", "target", lambda: _load(target, lanes))
        if source is not None and target is not None:
            checks += _guarded("routes", "both", lambda: _survey(source, target, lanes))
        routes = [route for lane in lanes for route in lane.routes]
        if source is not None:
            checks += _check_source(source, settings, lanes, routes)
        if target is not None:
            checks += _check_target(target, settings, lanes, routes)
        if source is not None and target is not None:
            checks += _check_both(source, target, settings, lanes, routes)
    return checks


def _open(stack: contextlib.ExitStack, dsn: str, side: Side, checks: list[Check]) -> Connection | None:
    try:
        conn = stack.enter_context(contextlib.closing(connect(dsn, side, purpose="check")))
    except ReplicatorError as exc:
        checks.append(failed("connection", side, exc.message, _connection_remedy(exc, dsn)))
        checks.append(warned("skipped", side, f"the other checks of the {side} were skipped", "mend the connection"))
        return None
    version = conn.info.server_version
    where = f"PostgreSQL {version // 10000}.{version % 10000}, database {conn.info.dbname}, role {conn.info.user}"
    checks.append(passed("connection", side, where))
    if version < _OLDEST:
        checks.append(failed("version", side, "PostgreSQL 14 is the oldest that works", "upgrade the server"))
    else:
        checks.append(passed("version", side, f"{version // 10000}"))
    return conn


def _connection_remedy(exc: ReplicatorError, dsn: str) -> str:
    unresolved = ("could not translate host name", "Network is unreachable", "No route to host")
    host = ""
    with contextlib.suppress(psycopg.ProgrammingError):
        host = str(conninfo_to_dict(dsn).get("host", ""))
    if host.startswith("db.") and ".supabase." in host and any(text in exc.message for text in unresolved):
        return "the direct host has an IPv6 address only: run where IPv6 works, or enable the project's IPv4 add-on"
    return exc.hint or "see that the server is up and reachable from here"


def _load(target: Connection, lanes: Sequence[_Lane]) -> list[Check]:
    for lane in lanes:
        lane.recorded = load_recorded(target, lane.settings.source.slot)
    return []


def _survey(source: Connection, target: Connection, lanes: Sequence[_Lane]) -> Iterator[Check]:
    surveys = [survey(lane.settings, source, target, lane.recorded.copied_tables, closely=True) for lane in lanes]
    for lane, one in zip(lanes, surveys, strict=True):
        lane.routes = one.routes
    found = merged(surveys)
    yield from schemas.check_routes(found.routes, found.faults)
    yield from continuity.check_drift(found)


def _check_source(
    conn: Connection, settings: Settings, lanes: Sequence[_Lane], routes: Sequence[Route]
) -> Iterator[Check]:
    size = sum(route.source.bytes_estimate for route in routes)
    yield from _guarded("wal_level", "source", lambda: source_server.check_wal_level(conn))
    yield from _guarded("capacity", "source", lambda: source_server.check_capacity(conn, settings))
    yield from _guarded("role", "source", lambda: source_server.check_role(conn))
    yield from _guarded("max_slot_wal_keep_size", "source", lambda: source_server.check_wal_kept(conn, size))
    yield from _guarded("failover", "source", lambda: source_server.check_failover(conn, settings))
    yield from _guarded("timeouts", "source", lambda: source_server.check_timeouts(conn))
    yield from _guarded("transactions", "source", lambda: source_server.check_transactions(conn))
    yield from _guarded("large_objects", "source", lambda: source_server.check_large_objects(conn))
    yield from _guarded("auth_users", "source", lambda: source_tables.check_user_table(conn, settings))
    for lane in lanes:
        if lane.routes:
            yield from lane.guarded("publication", "source", partial(
                continuity.check_publication, conn, lane.settings, lane.routes, lane.recorded))  # fmt: skip
    if routes:
        yield from _guarded("select", "source", lambda: source_tables.check_readable(conn, routes))
        yield from _guarded("replica_identity", "source", lambda: source_tables.check_identity(conn, routes))
        yield from _guarded("freeze", "source", lambda: source_tables.check_freeze(conn, routes))
        yield from _guarded("inheritance", "source", lambda: source_tables.check_inheritance(conn, routes))


def _check_target(
    conn: Connection, settings: Settings, lanes: Sequence[_Lane], routes: Sequence[Route]
) -> Iterator[Check]:
    silenced = False

    def triggers_role() -> Iterator[Check]:
        nonlocal silenced
        silenced = may_be_replica(conn)
        return target_server.check_trigger_role(silenced)

    yield from _guarded("writable", "target", lambda: target_server.check_writable(conn))
    yield from _guarded("state_schema", "target", lambda: target_server.check_state_schema(conn))
    yield from _guarded("session_replication_role", "target", triggers_role)
    if routes:
        known = {name for lane in lanes for name in lane.recorded.tables}
        defer = settings.snapshot.defer_indexes
        yield from _guarded(
            "privileges", "target", lambda: target_tables.check_privileges(conn, routes, defer_indexes=defer)
        )
        yield from _guarded("triggers", "target", lambda: target_tables.check_triggers(conn, routes, silenced=silenced))
        yield from _guarded("key_index", "target", lambda: target_tables.check_key_indexes(conn, routes))
        yield from _guarded("foreign_keys", "target", lambda: target_tables.check_foreign_keys(routes))
        if settings.lanes:
            yield from _guarded(
                "lanes", "target", lambda: target_tables.check_lanes(settings, routes, replica=silenced)
            )
        yield from _guarded("empty_tables", "target", lambda: target_tables.check_empty(conn, routes, known))


def _check_both(
    source: Connection,
    target: Connection,
    settings: Settings,
    lanes: Sequence[_Lane],
    routes: Sequence[Route],
) -> Iterator[Check]:
    for lane in lanes:
        yield from lane.guarded("same_source", "both", partial(continuity.check_same_source, source, lane.recorded))
        yield from lane.guarded("slot", "source", partial(continuity.check_slot, source, target, lane.settings))
    yield from _guarded("slot", "source", lambda: continuity.check_other_slots(source, target, settings))
    yield from _guarded("encoding", "both", lambda: target_server.check_encoding(source, target))
    if routes:
        yield from _guarded("enum_labels", "target", lambda: schemas.check_enums(routes))
        yield from _guarded("generated_columns", "target", lambda: schemas.check_generated(routes))
        yield from _guarded("sequences", "target", lambda: schemas.check_sequences(source, target, routes))
        yield from _guarded("extensions", "target", lambda: schemas.check_extensions(source, target, routes))
        yield from _guarded("id_coverage", "both", lambda: coverage.check_id_coverage(source, target, settings, routes))


def _guarded(name: str, side: Where, check: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks, or one that failed because the server would not answer."""
    try:
        return list(check())
    except psycopg.Error as exc:
        error = translate(exc, "target" if side == "target" else "source")
    except ReplicatorError as exc:
        error = exc
    return [failed(name, side, f"could not be checked: {error.message}", error.hint or "see the server's log")]
