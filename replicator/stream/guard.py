"""Before the stream starts: is this the source, and the slot, that the checkpoint belongs to?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replicator.config import Settings
from replicator.errors import OTHER_SOURCE, StateError, TransientError
from replicator.model.schema import TableName
from replicator.postgres.catalog import server_identity
from replicator.postgres.connection import Connection, connect, translated
from replicator.postgres.session import Session
from replicator.routing.route import Route
from replicator.source.history import identify, require_history
from replicator.source.publication import require_publication
from replicator.source.slot import SlotInfo, alter_failover, require_slot
from replicator.target.state import Checkpoint, TableState, set_timeline


@dataclass(frozen=True, slots=True)
class Guarded:
    """What was looked at, for the session that streams."""

    slot: SlotInfo
    timeline: int


def guard_start(
    source: Connection,
    settings: Settings,
    routes: Sequence[Route],
    checkpoint: Checkpoint,
    states: Mapping[TableName, TableState],
) -> Guarded:
    """Refuse to stream where rows would be missing.

    Raises:
        StateError: another source than the one that the checkpoint belongs to; a slot or publication that is not ours.
        SlotLost: the slot or publication is gone, lost, re-created, or past the checkpoint; the target is ahead of it.
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
    furthest = max([checkpoint.applied_lsn, *(each.snapshot_lsn for each in states.values() if each.snapshot_lsn)])
    timeline = require_history(source, settings.source.dsn, timeline=checkpoint.timeline, lsn=furthest)
    slot = require_slot(source, checkpoint.slot, checkpoint.database, checkpoint.applied_lsn)
    published = {name: state.published for name, state in states.items()}
    require_publication(source, settings.source.publication, routes, published=published)
    return Guarded(slot, timeline)


def open_stream(settings: Settings, guarded: Guarded, writer: Connection) -> Session:
    """The session to stream on: on the very server that was looked at, its slot set as the settings want it.

    Raises:
        TransientError: it is on another server: a DSN may name several, and which one it leads to changes.
    """
    with translated("target"):
        set_timeline(writer, guarded.slot.name, guarded.timeline)
    conn = connect(settings.source.dsn, "source", purpose="stream", replication=True)
    try:
        with translated("source"):
            _require_timeline(conn, guarded.timeline)
            alter_failover(conn, guarded.slot, settings.source.failover)
    except BaseException:
        conn.close()
        raise
    return conn


def _require_timeline(conn: Connection, timeline: int) -> None:
    found = identify(conn).timeline
    if found != timeline:
        raise TransientError(f"source: another server answers by now, on timeline {found}")
