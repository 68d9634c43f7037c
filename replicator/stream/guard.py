"""Before the stream starts: is this the source, and the slot, that the checkpoint belongs to?

From server 15 on, START_REPLICATION at a position that the slot has left behind silently starts at the slot's own,
later one. So we look first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replicator.config import Settings
from replicator.errors import NEW_SNAPSHOT, SlotLost, StateError
from replicator.model.schema import TableName
from replicator.postgres.catalog import server_identity
from replicator.postgres.connection import Connection, translated
from replicator.routing.route import Route
from replicator.source.publication import require_publication
from replicator.source.slot import load_slot
from replicator.target.state import Checkpoint, TableState


def guard_start(
    source: Connection,
    settings: Settings,
    routes: Sequence[Route],
    checkpoint: Checkpoint,
    states: Mapping[TableName, TableState],
) -> None:
    """Refuse to stream where rows would be missing.

    Raises:
        StateError: another source than the one that the checkpoint belongs to; a publication that is not ours.
        SlotLost: the slot or publication is gone, lost, re-created, or past the checkpoint.
    """
    with translated("source"):
        identity = server_identity(source)
        slot = load_slot(source, checkpoint.slot)
    if identity != (checkpoint.system_identifier, checkpoint.database):
        raise StateError(
            f"this source is not the one that slot {checkpoint.slot} was made on "
            f"(database {identity[1]} of system {identity[0]}, recorded: {checkpoint.database} of "
            f"{checkpoint.system_identifier})",
            hint="correct [source] dsn; if the source was restored from a backup: " + NEW_SNAPSHOT,
        )
    if slot is None:
        raise SlotLost(f"slot {checkpoint.slot} is gone from the source", hint=NEW_SNAPSHOT)
    if slot.plugin != "pgoutput" or slot.database != checkpoint.database:
        raise SlotLost(f"slot {slot.name} is not the one that we made (plugin {slot.plugin})", hint=NEW_SNAPSHOT)
    if slot.is_lost:
        why = f" ({slot.invalidation_reason})" if slot.invalidation_reason else ""
        raise SlotLost(f"slot {slot.name} is lost{why}: the source has removed WAL that it needs", hint=NEW_SNAPSHOT)
    if slot.confirmed_flush_lsn is not None and slot.confirmed_flush_lsn > checkpoint.applied_lsn:
        raise SlotLost(
            f"slot {slot.name} stands at {slot.confirmed_flush_lsn}, past our checkpoint {checkpoint.applied_lsn}: "
            "it was re-created or advanced by somebody else, or the target was restored to an earlier state",
            hint="changes in between cannot be had any more: " + NEW_SNAPSHOT,
        )
    published = {name: state.published for name, state in states.items()}
    require_publication(source, settings.source.publication, routes, published=published)
