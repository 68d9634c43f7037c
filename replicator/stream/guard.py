"""Before the stream starts: is this the source, and the slot, that the checkpoint belongs to?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replicator.config import Settings
from replicator.errors import OTHER_SOURCE, StateError
from replicator.model.schema import TableName
from replicator.postgres.catalog import server_identity
from replicator.postgres.connection import Connection, translated
from replicator.routing.route import Route
from replicator.source.publication import require_publication
from replicator.source.slot import require_slot
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
        StateError: another source than the one that the checkpoint belongs to; a slot or publication that is not ours.
        SlotLost: the slot or publication is gone, lost, re-created, or past the checkpoint.
    """
    with translated("source"):
        identity = server_identity(source)
    if identity != (checkpoint.system_identifier, checkpoint.database):
        raise StateError(
            f"this source is not the one that slot {checkpoint.slot} was made on "
            f"(database {identity[1]} of system {identity[0]}, recorded: {checkpoint.database} of "
            f"{checkpoint.system_identifier})",
            hint="correct [source] dsn; if the source was restored from a backup: " + OTHER_SOURCE,
        )
    require_slot(source, checkpoint.slot, checkpoint.database, checkpoint.applied_lsn)
    published = {name: state.published for name, state in states.items()}
    require_publication(source, settings.source.publication, routes, published=published)
