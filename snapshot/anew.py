"""Whether what was begun can still be finished: if not, only a new slot and snapshot help."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Final

from replicator.config import Settings
from replicator.errors import SlotLost
from replicator.model.schema import TableName
from replicator.postgres.connection import Connection
from replicator.routing.route import Route
from replicator.source.history import require_history
from replicator.source.publication import require_publication
from replicator.source.slot import require_slot
from replicator.target.state import Checkpoint, TableState

_LOOK_EVERY_S: Final = 2.0


class SlotWatch:
    """Looks at the slot every few seconds while rows are copied: under a slot that is lost they are of no use."""

    def __init__(self, source: Connection, slot: str) -> None:
        self._source, self._slot = source, slot
        self._next_look = 0.0

    def __call__(self) -> None:
        """Call it as often as you like.

        Raises:
            SlotLost: the slot is gone or lost.
        """
        if time.monotonic() >= self._next_look:
            require_slot(self._source, self._slot, self._source.info.dbname, None)
            self._next_look = time.monotonic() + _LOOK_EVERY_S


def find_break(
    source: Connection,
    settings: Settings,
    routes: Collection[Route],
    checkpoint: Checkpoint,
    states: Mapping[TableName, TableState],
) -> SlotLost | None:
    """Why the stream cannot go on from the checkpoint; None if it can.

    Raises:
        StateError: a slot or publication that is not ours is in the way.
    """
    copied = {name for name, each in states.items() if each.state == "copied"}
    try:
        require_position(source, settings, checkpoint, states)
        require_publication(
            source,
            settings.source.publication,
            routes,
            may_lack={route.source.name for route in routes if route.name not in copied},
            published={name: each.published for name, each in states.items()},
        )
    except SlotLost as exc:
        return exc
    return None


def require_position(
    source: Connection, settings: Settings, checkpoint: Checkpoint, states: Mapping[TableName, TableState]
) -> int:
    """Make sure that the slot can stream from the checkpoint, and that all we have is part of the source's history.

    Returns:
        The source's timeline.

    Raises:
        SlotLost: it cannot, or is not.
        StateError: the slot is not ours, or the source was left behind by a failover.
    """
    furthest = max([checkpoint.applied_lsn, *(each.snapshot_lsn for each in states.values() if each.snapshot_lsn)])
    timeline = require_history(source, settings.source.dsn, timeline=checkpoint.timeline, lsn=furthest)
    require_slot(source, checkpoint.slot, checkpoint.database, checkpoint.applied_lsn)
    return timeline
