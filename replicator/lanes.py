"""The lanes of the settings against what is there: tables of the source, and lanes that the target has recorded."""

from __future__ import annotations

from replicator.config import Settings
from replicator.errors import ConfigError
from replicator.model.schema import show_tables
from replicator.postgres.catalog import load_tables
from replicator.postgres.connection import Connection, translated
from replicator.routes import CORRECT_LANES
from replicator.target import state


def refuse_unknown_tables(settings: Settings, source: Connection, target: Connection) -> None:
    """Raise ConfigError where a lane, this one or another, names a table that the source does not have.

    Lane 1 would copy the table that was meant, and tables stay in the lane that has copied them. What some lane has
    copied was known: it was dropped since, which is no fault.
    """
    specs = settings.lane_specs()
    with translated("source"):
        found = load_tables(source, [spec.source for spec in specs])
    unknown = {spec.target for spec in specs if spec.source not in found}
    if unknown:
        with translated("target"):
            unknown -= state.load_all_tables(target)
    if unknown:
        raise ConfigError(f"lanes: not on the source: {show_tables(sorted(unknown))}", hint=CORRECT_LANES)
