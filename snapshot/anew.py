"""Whether what was begun can still be finished: if not, only a new slot and snapshot help."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from replicator.config import Settings
from replicator.errors import SlotLost
from replicator.model.schema import TableName
from replicator.postgres.connection import Connection
from replicator.routing.route import Route
from replicator.source.publication import require_publication
from replicator.source.slot import require_slot
from replicator.target.state import Checkpoint, TableState


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
        require_slot(source, checkpoint.slot, checkpoint.database, checkpoint.applied_lsn)
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
