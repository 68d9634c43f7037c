"""Both catalogs as they are now, against what was recorded when the tables were copied: the routes, and the drift."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from psycopg import sql

from replicator.config import Settings
from replicator.errors import SchemaMismatch
from replicator.model.schema import TableName, show_table
from replicator.postgres.catalog import list_tables
from replicator.postgres.connection import Connection, Side, query, table_identifier, translated
from replicator.routes import load_routes, refuse_faults
from replicator.routing.drift import Drift, find_drift, shown
from replicator.routing.lanes import FIRST
from replicator.routing.record import TableRecord, record_of, renewed
from replicator.routing.route import Fault, Route
from replicator.target import state

States = Mapping[TableName, state.TableState]


@dataclass(frozen=True, slots=True)
class Survey:
    """What a look at both sides has found. ``states``: by the names that the target's tables have now."""

    routes: tuple[Route, ...]
    faults: tuple[Fault, ...]
    drifts: tuple[Drift, ...]
    newcomers: tuple[TableName, ...]  # tables of the source that came after the snapshot and are not replicated
    states: States

    @property
    def stopping(self) -> tuple[Drift, ...]:
        """What the stream must not go on with."""
        return tuple(drift for drift in self.drifts if drift.stops)

    @property
    def notes(self) -> tuple[Drift, ...]:
        """What somebody should know."""
        return tuple(drift for drift in self.drifts if not drift.stops)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the target knows of earlier runs of a slot; empty if there were none."""

    checkpoint: state.Checkpoint | None = None
    tables: States = field(default_factory=dict)

    @property
    def is_streaming(self) -> bool:
        """A snapshot began and no cutover has ended it: slot and publication must be there."""
        return self.checkpoint is not None and self.checkpoint.phase not in ("new", "cut_over")

    @property
    def copied_tables(self) -> States:
        """All tables, once the snapshot is complete; none before."""
        known = self.checkpoint is not None and self.checkpoint.phase not in ("new", "copying")
        return self.tables if known else {}


def load_recorded(target: Connection, slot: str) -> Recorded:
    """Read our state, if the target has it."""
    with translated("target"):
        if not state.exists(target):
            return Recorded()
        return Recorded(state.load_checkpoint(target, slot), state.load_table_states(target, slot))


def survey_lanes(settings: Settings, source: Connection, target: Connection, *, closely: bool = False) -> Survey:
    """The surveys of all lanes, each against its own record, as one. ``closely``: as of `survey`."""
    return merged(
        survey(lane, source, target, load_recorded(target, lane.source.slot).copied_tables, closely=closely)
        for lane in settings.split()
    )


def merged(surveys: Iterable[Survey]) -> Survey:
    """Several lanes as one."""
    every = list(surveys)
    return Survey(
        routes=tuple(route for one in every for route in one.routes),
        faults=tuple(fault for one in every for fault in one.faults),
        drifts=tuple(drift for one in every for drift in one.drifts),
        newcomers=tuple(name for one in every for name in one.newcomers),
        states={name: known for one in every for name, known in one.states.items()},
    )


def survey(
    settings: Settings,
    source: Connection,
    target: Connection,
    states: States,
    *,
    copy_anew: Collection[TableName] = (),
    closely: bool = False,
) -> Survey:
    """Plan the routes, and compare each with its record. Changes nothing.

    Without ``tables`` in the settings all tables of the source are meant; but once the snapshot is complete, a
    new one is not taken up by itself: its rows would be missing, and its target as a rule is.

    Args:
        states: of the tables, as the target has recorded them; none before the first snapshot.
        copy_anew: target tables that are about to be copied: whatever has happened to them does not matter.
        closely: look at the rows of new partitions too.
    """
    with _at_one_moment(source, "source"), _at_one_moment(target, "target"):
        return _survey(settings, source, target, states, copy_anew=copy_anew, closely=closely)


@contextmanager
def _at_one_moment(conn: Connection, side: Side) -> Iterator[None]:
    """One snapshot for all queries: one of them may wait for a lock, and what it waited for changes the catalog."""
    with translated(side), conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def _survey(
    settings: Settings,
    source: Connection,
    target: Connection,
    states: States,
    *,
    copy_anew: Collection[TableName],
    closely: bool,
) -> Survey:
    newcomers: list[TableName] = []
    renamed: list[TableName] = []
    if not settings.tables and states:
        newcomers, renamed = _unknown(settings, source, target, states, copy_anew)
    routes, faults = load_routes(settings, source, target, leave_out=[*newcomers, *renamed])
    states = _by_present_name(states, routes)
    drifts, explained = _parted(settings, source, target, states, routes)
    for route in routes:
        known = states.get(route.name)
        if known is not None and known.record is not None and route.name not in copy_anew:
            drifts += find_drift(route, known.record, settings.map_specs)
            if closely:
                drifts += _attached_with_rows(source, route, known.record)
    return Survey(
        routes=tuple(routes),
        faults=tuple(fault for fault in faults if fault.table not in explained),
        drifts=tuple(drifts),
        newcomers=tuple(newcomers),
        states=states,
    )


def refuse_drift(found: Survey) -> None:
    """Raise SchemaMismatch naming every drift that would leave wrong values on the target."""
    stopping = found.stopping
    if len(stopping) == 1:
        raise SchemaMismatch(str(stopping[0]), hint=f"{stopping[0].remedy}; then start again")
    if stopping:
        lines = "\n".join(f"{drift} — {drift.remedy}" for drift in stopping)
        raise SchemaMismatch(lines, hint="mend each, then start again")


def require_survey(
    settings: Settings,
    source: Connection,
    target: Connection,
    states: States,
    *,
    copy_anew: Collection[TableName] = (),
    closely: bool = False,
) -> Survey:
    """The survey, with routes that are all sound and have not drifted apart.

    Raises:
        SchemaMismatch: every fault with its remedy.
    """
    found = survey(settings, source, target, states, copy_anew=copy_anew, closely=closely)
    refuse_drift(found)
    refuse_faults(found.faults)
    if not found.routes:
        raise SchemaMismatch("there is nothing to replicate", hint="name the tables in the settings")
    return found


def accept(settings: Settings, target: Connection, found: Survey) -> None:
    """Record the routes as they are now: from here on, they are what the target's rows are of."""
    slot = settings.source.slot
    ignored, specs = settings.stream.on_new_column == "ignore", settings.map_specs
    for route in found.routes:
        known = found.states.get(route.name)
        if known is None or known.state == "pending":
            continue
        if known.name != route.name:
            state.rename_table(target, slot, known.name, route.name)
        record = (
            record_of(route, specs) if known.record is None else renewed(known.record, route, with_homeless=ignored)
        )
        if record != known.record:
            state.store_record(target, slot, route.name, record)


def newcomer_message(name: TableName) -> tuple[str, str]:
    """What to say of a table that came after the snapshot: the problem, and its remedy."""
    return (
        f"table {show_table(name)} is new on the source and is not replicated",
        f"create it on the target, then `replicator snapshot --table {show_table(name)}` with the service stopped; "
        "or name the tables that you want in `tables` of the settings",
    )


def _unknown(
    settings: Settings, source: Connection, target: Connection, states: States, copy_anew: Collection[TableName]
) -> tuple[list[TableName], list[TableName]]:
    """Tables without a record under their name: those that are new, and those that are known under another name."""
    with translated("source"):
        specs = settings.route_specs(list_tables(source))
        specs = [spec for spec in specs if spec.target not in states and spec.target not in copy_anew]
        oids = _oids(source, [spec.source for spec in specs])
    with translated("target"):
        target_oids = _oids(target, [spec.target for spec in specs])
    pairs = {(s.record.source_oid, s.record.target_oid) for s in states.values() if s.record is not None}
    sources = {source_oid for source_oid, _ in pairs}
    # What the settings name and the source does not have is neither, but a fault.
    specs = [spec for spec in specs if spec.source in oids]
    new = [spec.target for spec in specs if oids[spec.source] not in sources]
    renamed = [
        spec.target
        for spec in specs
        if spec.target not in new and (oids[spec.source], target_oids.get(spec.target)) not in pairs
    ]
    return new, renamed


def _by_present_name(states: States, routes: Collection[Route]) -> States:
    """Under their new names: tables that were renamed on both sides, or on the target alone and in the settings."""
    by_pair = {(s.record.source_oid, s.record.target_oid): s for s in states.values() if s.record is not None}
    found = dict(states)
    for route in routes:
        known = by_pair.get((route.source.oid, route.target.oid))
        if known is not None and known.name != route.name and route.name not in states:
            found.pop(known.name, None)
            found[route.name] = known
    return found


def _parted(
    settings: Settings, source: Connection, target: Connection, states: States, routes: Collection[Route]
) -> tuple[list[Drift], set[TableName]]:
    """Recorded tables that no route leads to any more: renamed, moved or dropped on one side.

    Returns: what to say of them, and the names of the target tables that it is said of.
    """
    routed = {route.name for route in routes}
    lost = {name: s.record for name, s in states.items() if s.record is not None and name not in routed}
    drifts: list[Drift] = []
    explained: set[TableName] = set()
    if not lost:
        return drifts, explained
    with translated("source"):
        sources = _names(source, [record.source_oid for record in lost.values()])
    with translated("target"):
        targets = _names(target, [record.target_oid for record in lost.values()])
    specs = settings.route_specs([])
    for name in [name for name in lost if not settings.takes(name)]:
        drifts.append(_moved(settings, name))
        explained.add(name)
        del lost[name]
    for name, record in lost.items():
        there, here = sources.get(record.source_oid), targets.get(record.target_oid)
        asked = {spec.target for spec in specs if spec.target in (name, here) or spec.source == there}
        if settings.tables and not asked:
            continue  # taken out of the settings
        explained |= {name, *asked}
        if there is not None and here is not None:
            drifts.append(_renamed(name, there, here))
        elif there is not None:
            drifts.append(Drift(name, "the table was dropped on the target",
                                f"create it again, then `replicator snapshot --table {show_table(name)}`"))  # fmt: skip
        elif here is not None:
            remedy = f"DROP TABLE {shown(here)} on the target, if they are not wanted"
            also = f"take {show_table(name)} out of `tables`; " if settings.tables else ""
            drifts.append(Drift(name, "the table was dropped on the source; the target's keeps its last rows",
                                also + remedy, stops=bool(settings.tables)))  # fmt: skip
    return drifts, explained


def _moved(settings: Settings, name: TableName) -> Drift:
    number = settings.lane_of.get(name, FIRST)
    return Drift(
        name,
        f"the settings give the table to lane {number}, and it was copied by slot {settings.source.slot}",
        "put it back: tables stay in the lane that has copied them; or start all over: `replicator teardown`, then a "
        "new snapshot",
    )


def _renamed(name: TableName, there: TableName, here: TableName) -> Drift:
    remedy = f'say so in the settings: [routes."{show_table(here)}"] source = "{show_table(there)}"'
    if there[0] != here[0]:
        also = f"ALTER TABLE {shown(here)} SET SCHEMA {there[0]}"
    else:
        also = f"ALTER TABLE {shown(here)} RENAME TO {shown(('public', there[1]))}"
    return Drift(
        name,
        f"the source's table is called {'.'.join(there)} now, the target's {'.'.join(here)}: one of them was renamed",
        f"do the same on the other side, as by {also} on the target, and name it so in `tables`; or {remedy}",
    )


def _attached_with_rows(source: Connection, route: Route, record: TableRecord) -> Iterator[Drift]:
    """New partitions that held rows before they were attached: no stream brings those."""
    known = {oid for oid, _ in record.leaves}
    for oid, name in route.source.leaves:
        if oid in known:
            continue
        with translated("source"):
            table = _names(source, [oid]).get(oid)
            older = table is not None and query(source, _older_rows(table, oid)) == [(True,)]
        if older:
            yield Drift(
                route.name,
                f"partition {name} was attached on the source with rows in it, which are in no stream",
                f"`replicator snapshot --table {route}` brings them",
            )


def _older_rows(name: TableName, oid: int) -> sql.Composed:
    return sql.SQL(
        "SELECT EXISTS (SELECT FROM ONLY {} AS l, pg_catalog.pg_inherits AS i"
        " WHERE i.inhrelid = {} AND pg_catalog.age(l.xmin) > pg_catalog.age(i.xmin))"
    ).format(table_identifier(name), sql.Literal(oid))


def _oids(conn: Connection, names: Collection[TableName]) -> dict[TableName, int]:
    rows = query(
        conn,
        """
        SELECT n.nspname::text, c.relname::text, c.oid::bigint FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE (n.nspname, c.relname) IN (SELECT s, t FROM unnest(%s::text[], %s::text[]) AS wanted (s, t))
        """,
        [schema for schema, _ in names],
        [name for _, name in names],
    )
    return {(schema, name): oid for schema, name, oid in rows}


def _names(conn: Connection, oids: Collection[int]) -> dict[int, TableName]:
    rows = query(
        conn,
        """
        SELECT c.oid::bigint, n.nspname::text, c.relname::text FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY (%s::oid[])
        """,
        list(oids),
    )
    return {oid: (schema, name) for oid, schema, name in rows}
