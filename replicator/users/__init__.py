"""Who is who on both sides: the map file, its import and export, coverage and retention."""

from replicator.users.mapfile import MapFile, Mapping, read_map_file, write_map_file
from replicator.users.status import MapStatus, UsersStatus, load_status
from replicator.users.store import Entry, ImportResult, export_file, import_file, lookup, purge

__all__ = [
    "Entry",
    "ImportResult",
    "MapFile",
    "MapStatus",
    "Mapping",
    "UsersStatus",
    "export_file",
    "import_file",
    "load_status",
    "lookup",
    "purge",
    "read_map_file",
    "write_map_file",
]
