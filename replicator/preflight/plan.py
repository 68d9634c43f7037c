"""The plan as people read it: routes in copy order, faults, and what will be created on the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replicator.config import Settings
from replicator.model.schema import show_table
from replicator.postgres.connection import Connection, connect, translated
from replicator.preflight.schemas import key_columns
from replicator.routing.lanes import FIRST, crossing_keys
from replicator.routing.order import levels
from replicator.routing.route import Fault, Route
from replicator.source.publication import create_statement
from replicator.survey import newcomer_message, survey_lanes
from replicator.target.role import may_be_replica


@dataclass(frozen=True, slots=True)
class PlannedTable:
    """One route, in names. ``level``: copied once the tables of lower levels are in."""

    name: str
    source: str
    level: int
    lane: int
    mode: str  # direct
    rows_estimate: int
    bytes_estimate: int
    key: tuple[str, ...]  # target columns that identify a row
    renamed: dict[str, str]  # target column → source column
    id_maps: dict[str, str]  # target column → map
    dropped: tuple[str, ...]  # source columns without a home
    defaulted: tuple[str, ...]  # target columns without a source

    def to_json(self) -> dict[str, object]:
        """The entry of ``tables`` in ``plan --json``."""
        return {
            "name": self.name,
            "source": self.source,
            "level": self.level,
            "lane": self.lane,
            "mode": self.mode,
            "rows_estimate": self.rows_estimate,
            "bytes_estimate": self.bytes_estimate,
            "key": list(self.key),
            "renamed": self.renamed,
            "id_maps": self.id_maps,
            "dropped": list(self.dropped),
            "defaulted": list(self.defaulted),
        }


@dataclass(frozen=True, slots=True)
class SourceObjects:
    """What one lane needs on the source. ``publication_sql``: empty if there is no table."""

    lane: int
    slot: str
    publication: str
    publication_sql: str
    failover: bool  # the source's standbys are to keep the slot too

    def to_json(self) -> dict[str, object]:
        """The entry of ``source_objects`` in ``plan --json``."""
        return {
            "publication": self.publication,
            "publication_sql": self.publication_sql,
            "slot": self.slot,
            "slot_failover": self.failover,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a run would do, before anything is done. ``tables`` are in copy order."""

    tables: tuple[PlannedTable, ...]
    levels: tuple[tuple[str, ...], ...]
    faults: tuple[Fault, ...]
    lanes: tuple[SourceObjects, ...]  # at least one
    notes: tuple[str, ...] = ()  # what has changed on one side since the tables were copied, and stops nothing

    @property
    def ok(self) -> bool:
        """Everything asked for can be replicated."""
        return bool(self.tables) and not self.faults

    def to_json(self) -> dict[str, object]:
        """The document of ``plan --json``."""
        return {
            "ok": self.ok,
            "levels": [list(level) for level in self.levels],
            "tables": [table.to_json() for table in self.tables],
            "faults": [
                {"table": show_table(fault.table), "message": fault.message, "remedy": fault.remedy}
                for fault in self.faults
            ],
            "notes": list(self.notes),
            "source_objects": {
                **self.lanes[0].to_json(),
                "logical_messages": "a fence at the cutover and a heartbeat every 5 s, with prefix replicator",
            },
            **({"lanes": [{"lane": lane.lane, **lane.to_json()} for lane in self.lanes]} if self.lanes[1:] else {}),
        }


def load_plan(settings: Settings) -> Plan:
    """Read both catalogs and plan; changes nothing.

    Raises:
        ReplicatorError: a side does not answer.
    """
    with (
        connect(settings.source.dsn, "source", purpose="plan") as source,
        connect(settings.target.dsn, "target", purpose="plan") as target,
    ):
        found = survey_lanes(settings, source, target, closely=True)
        faults = [*found.faults, *(Fault(drift.table, drift.message, drift.remedy) for drift in found.stopping)]
        faults += [Fault(name, *newcomer_message(name)) for name in found.newcomers]
        with translated("target"):
            live = not may_be_replica(target)
        if live:
            faults += crossing_keys(settings.lane_of, found.routes, {route.name for route in found.routes})
        return _describe(settings, source, found.routes, faults, [f"{n} — {n.remedy}" for n in found.notes])


def _describe(
    settings: Settings, source: Connection, routes: Sequence[Route], faults: Sequence[Fault], notes: Sequence[str]
) -> Plan:
    ordered = levels(route.target for route in routes)
    level_of = {name: number for number, names in enumerate(ordered, start=1) for name in names}
    tables = sorted(
        (_planned(route, level_of[route.name], settings.lane_of.get(route.name, FIRST)) for route in routes),
        key=lambda table: (table.level, table.name),
    )
    return Plan(
        tables=tuple(tables),
        levels=tuple(tuple(show_table(name) for name in names) for names in ordered),
        faults=tuple(faults),
        lanes=tuple(_objects(lane, source, routes) for lane in settings.split()),
        notes=tuple(notes),
    )


def _objects(lane: Settings, source: Connection, routes: Sequence[Route]) -> SourceObjects:
    tables = [route.source for route in routes if lane.takes(route.name)]
    statement = create_statement(lane.source.publication, tables).as_string(source) if tables else ""
    return SourceObjects(
        lane=lane.lane_number or FIRST,
        slot=lane.source.slot,
        publication=lane.source.publication,
        publication_sql=statement,
        failover=lane.source.failover and source.info.server_version >= 170000,
    )


def _planned(route: Route, level: int, lane: int) -> PlannedTable:
    return PlannedTable(
        name=str(route),
        source=str(route.source),
        level=level,
        lane=lane,
        mode="direct",
        rows_estimate=route.source.rows_estimate,
        bytes_estimate=route.source.bytes_estimate,
        key=key_columns(route),
        renamed={c.target.name: c.source.name for c in route.columns if c.source.name != c.target.name},
        id_maps={c.target.name: c.id_map.name for c in route.columns if c.id_map is not None},
        dropped=route.dropped,
        defaulted=route.defaulted,
    )
