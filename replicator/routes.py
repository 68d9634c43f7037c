"""The routes of a run: both catalogs read, the settings applied."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from replicator.config import Settings
from replicator.errors import SchemaMismatch
from replicator.model.schema import TableName
from replicator.postgres.catalog import list_references, list_tables, load_tables
from replicator.postgres.connection import Connection, translated
from replicator.routing.lanes import crossing_keys
from replicator.routing.route import Fault, Route, plan_routes

CORRECT_LANES = "correct the name in [lanes] of the settings, or leave it out"


def load_routes(
    settings: Settings, source: Connection, target: Connection, *, leave_out: Collection[TableName] = ()
) -> tuple[list[Route], list[Fault]]:
    """The routes that the settings ask for, and why some cannot be. Reads the catalogs of both sides.

    Args:
        leave_out: target tables to pass over.
    """
    with translated("source"):
        specs = [spec for spec in settings.route_specs(list_tables(source)) if spec.target not in leave_out]
        sources = load_tables(source, [spec.source for spec in specs])
    with translated("target"):
        targets = load_tables(target, [spec.target for spec in specs])
    routes, faults = plan_routes(specs, sources, targets, settings.map_specs)
    if not settings.tables:
        unknown = {spec.target for spec in specs if spec.source not in sources} & settings.lane_of.keys()
        faults = [replace(fault, remedy=CORRECT_LANES) if fault.table in unknown else fault for fault in faults]
    return routes, faults


def require_routes(settings: Settings, source: Connection, target: Connection) -> list[Route]:
    """The routes, all of them sound.

    Raises:
        SchemaMismatch: one line per fault.
    """
    routes, faults = load_routes(settings, source, target)
    refuse_faults(faults)
    if not routes:
        raise SchemaMismatch("there is nothing to replicate", hint="name the tables in the settings")
    return routes


def refuse_faults(faults: Sequence[Fault]) -> None:
    """Raise SchemaMismatch naming every fault, if there are any."""
    if faults:
        lines = "\n".join(f"{'.'.join(fault.table)}: {fault.message} — {fault.remedy}" for fault in faults)
        raise SchemaMismatch(lines, hint="`replicator plan` shows every route")


def load_elsewhere(settings: Settings, source: Connection) -> frozenset[TableName]:
    """Target tables of other lanes than that of these settings."""
    if not settings.lane_number:
        return frozenset()
    with translated("source"):
        return settings.elsewhere(list_tables(source))


def load_referenced(
    settings: Settings, routes: Collection[Route], source: Connection, target: Connection
) -> frozenset[TableName]:
    """Those of our target tables that tables of other lanes reference."""
    elsewhere = load_elsewhere(settings, source)
    if not elsewhere:
        return frozenset()
    with translated("target"):
        found = list_references(target, [route.target for route in routes])
    return frozenset(name for name, referencing in found if referencing in elsewhere)


def refuse_crossing_keys(settings: Settings, routes: Collection[Route], source: Connection) -> None:
    """Raise SchemaMismatch where foreign keys, which are live, lead from one lane to another."""
    planned = load_elsewhere(settings, source) | {route.name for route in routes}
    refuse_faults(crossing_keys(settings.lane_of, routes, planned))
