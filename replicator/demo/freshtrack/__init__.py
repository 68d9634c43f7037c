"""FreshTrack Pro, a refrigeration monitoring product, in the shape of its target: schema, data, writers.

Both sides have the same 23 tables; the source adds Supabase's ``auth.users`` and row-level security, the
target splits ``sensor_readings`` into monthly partitions.
"""

from replicator.demo.freshtrack.generator import generate, write_map_file
from replicator.demo.freshtrack.schema import (
    EXTRA_TABLES,
    ID_MAPS,
    TABLES,
    extras_schema,
    settings_toml,
    source_schema,
    target_schema,
)
from replicator.demo.freshtrack.workload import Stats, Workload

__all__ = [
    "EXTRA_TABLES",
    "ID_MAPS",
    "TABLES",
    "Stats",
    "Workload",
    "extras_schema",
    "generate",
    "settings_toml",
    "source_schema",
    "target_schema",
    "write_map_file",
]
