"""The ID maps that rows pass through while they are copied: read once, not for every part."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from psycopg import sql

from replicator.postgres.connection import Connection, query, table_identifier, translated
from replicator.routing.idmap import IdMaps, MapSpec
from replicator.target import idmaps
from snapshot.session import Run


class MapCache:
    """The maps of the run at hand, shared by the threads of this process."""

    def __init__(self) -> None:
        """Empty."""
        self._lock = threading.Lock()
        self._run: str | None = None
        self._maps = IdMaps()
        self._loaded: set[str] = set()

    def get(self, run: Run, specs: Sequence[MapSpec], source: Connection, target: Connection) -> IdMaps:
        """Maps with at least these: table maps as the target has them, lookups as ``source`` sees their tables.

        All sessions of a run see the same snapshot, so its lookups are the same for each. Those of another run go.
        """
        with self._lock:
            if run.name != self._run:
                self._run, self._maps, self._loaded = run.name, IdMaps(), set()
            for spec in specs:
                if spec.name not in self._loaded:
                    for source_id, target_id in _load(spec, source, target).items():
                        self._maps.change(spec.name, source_id, target_id)
                    self._loaded.add(spec.name)
            return self._maps

    def forget(self) -> None:
        """The run is over: keep nothing of it."""
        with self._lock:
            self._run, self._maps, self._loaded = None, IdMaps(), set()


MAPS: Final = MapCache()


def _load(spec: MapSpec, source: Connection, target: Connection) -> dict[str, str]:
    if spec.is_lookup:
        return read_lookup(source, spec)
    with translated("target"):
        return dict(idmaps.load_maps(target, [spec.name]).entries(spec.name))


def read_lookup(conn: Connection, spec: MapSpec) -> dict[str, str]:
    """The entries of a lookup map as ``conn`` sees its table."""
    assert spec.table is not None
    statement = sql.SQL("SELECT {key}::text, {value}::text FROM {} WHERE {key} IS NOT NULL AND {value} IS NOT NULL")
    with translated("source"):
        return dict(
            query(
                conn,
                statement.format(
                    table_identifier(spec.table), key=sql.Identifier(spec.key), value=sql.Identifier(spec.value)
                ),
            )
        )
