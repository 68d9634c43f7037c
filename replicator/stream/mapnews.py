"""New entries of the ID maps, from `users import` and `users create`, on their way into the running stream."""

from __future__ import annotations

from collections.abc import Sequence

from replicator.logs import get_logger
from replicator.postgres.connection import Connection
from replicator.routing.idmap import IdMaps
from replicator.stream.batch import Batch
from replicator.stream.inbox import Inbox
from replicator.target.idmaps import load_maps

log = get_logger(__name__)


class MapNews:
    """The applier's thread looks for them; the receiver's, which owns the maps, takes them in."""

    def __init__(self, conn: Connection, names: Sequence[str], maps: IdMaps, inbox: Inbox, *, version: int) -> None:
        """``names``: of the maps of kind table; ``version``: the checkpoint's, when ``maps`` were read."""
        self._conn, self._names, self._maps, self._inbox = conn, names, maps, inbox
        self._version = version
        self._changes: list[tuple[str, str, str]] = []

    def look(self, version: int) -> None:
        """``version`` is the checkpoint's: read the maps again if it is another one."""
        if version == self._version:
            return
        self._version = version
        fresh = load_maps(self._conn, self._names)
        self._changes += [
            (name, source_id, target_id)
            for name in self._names
            for source_id, target_id in fresh.entries(name)
            if self._maps.target_id(name, source_id) != target_id
        ]

    def take(self) -> None:
        """To be called between transactions: rows routed from here on use the new entries."""
        if not self._changes:
            return
        changes, self._changes = self._changes, []
        for name, source_id, target_id in changes:
            self._maps.change(name, source_id, target_id)
        log.info("map entries taken in", entries=len(changes))
        self._inbox.put(Batch(remap=True))
