"""What we leave on the source between runs, publication and slot, against what the target has recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from replicator.config import Settings
from replicator.errors import NEW_SNAPSHOT, OTHER_SOURCE
from replicator.model.schema import TableName, show_table
from replicator.postgres.catalog import server_identity
from replicator.postgres.connection import Connection, query
from replicator.preflight.check import Check, failed, passed, warned
from replicator.routing.route import Route
from replicator.source.publication import Publication, load_publication
from replicator.source.slot import load_slot
from replicator.survey import Recorded, Survey, load_recorded, newcomer_message
from replicator.target import state


def check_publication(
    source: Connection, settings: Settings, routes: Sequence[Route], recorded: Recorded
) -> Iterator[Check]:
    """Absent: may we create it? Present: does it publish all rows and operations of exactly our tables?"""
    name = settings.source.publication
    found = load_publication(source, name)
    if found is None:
        if recorded.is_streaming:
            yield failed(
                "publication", "source", f"publication {name} is gone: changes made since are lost", NEW_SNAPSHOT
            )
        else:
            yield from _may_publish(source, name, routes)
        return
    wanted = {route.source.name for route in routes}
    checks = [*_publication_faults(name, found, wanted), *_missing_tables(name, found, wanted, recorded)]
    yield from checks or [passed("publication", "source", f"{name} publishes {len(routes)} tables")]


def _may_publish(source: Connection, name: str, routes: Sequence[Route]) -> Iterator[Check]:
    rows = query(
        source,
        "SELECT c.oid::bigint FROM pg_catalog.pg_class c"
        " WHERE c.oid = ANY (%s::oid[]) AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')",
        [route.source.oid for route in routes],
    )
    [(may_create,)] = query(source, "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')")
    foreign = {oid for (oid,) in rows}
    if foreign:
        tables = ", ".join(str(route.source) for route in routes if route.source.oid in foreign)
        yield failed(
            "publication",
            "source",
            f"publication {name} does not exist, and the role does not own {tables}",
            "create it as the owner, with the statement that `replicator plan` shows",
        )
    elif not may_create:
        yield failed(
            "publication",
            "source",
            f"publication {name} does not exist, and the role may not create it",
            "GRANT CREATE ON DATABASE … TO the role, or create it with the statement that `replicator plan` shows",
        )
    else:
        yield passed("publication", "source", f"{name} does not exist yet and can be created")


def _publication_faults(name: str, found: Publication, wanted: set[TableName]) -> Iterator[Check]:
    faults = {
        "publishes all tables, those of tools included": found.all_tables,
        f"publishes whole schemas: {', '.join(found.schemas)}": found.schemas,
        "leaves out some operations": found.operations != {"insert", "update", "delete", "truncate"},
        "sends partitions under their own names (publish_via_partition_root is off)": not found.via_root,
        f"also publishes {_names(found.tables.keys() - wanted)}": found.tables.keys() - wanted,
        f"sends only some rows or columns of {_names(found.narrowed & wanted)}": found.narrowed & wanted,
    }
    for fault, is_so in faults.items():
        if is_so:
            yield failed(
                "publication",
                "source",
                f"publication {name} {fault}",
                "choose another name in source.publication, or drop it before the first snapshot if nobody uses it",
            )


def _missing_tables(name: str, found: Publication, wanted: set[TableName], recorded: Recorded) -> Iterator[Check]:
    missing = wanted - found.tables.keys()
    if not missing or found.all_tables:
        return
    message = f"publication {name} does not publish {_names(missing)}"
    if not found.is_ours:
        yield failed("publication", "source", message, "let its owner add them: ALTER PUBLICATION … ADD TABLE")
    elif recorded.is_streaming:
        yield failed("publication", "source", message, "copy them with `replicator snapshot --table`, which adds them")
    else:
        yield warned("publication", "source", message, "the snapshot adds them")


def check_slot(source: Connection, target: Connection, settings: Settings) -> Iterator[Check]:
    """The slot and the checkpoint must belong together: otherwise changes would be skipped without a word."""
    name = settings.source.slot
    slot = load_slot(source, name)
    # Read after the slot: a service that runs moves its checkpoint first.
    recorded = load_recorded(target, name)
    checkpoint = recorded.checkpoint
    if slot is None:
        if recorded.is_streaming:
            yield failed("slot", "source", f"slot {name} is gone", NEW_SNAPSHOT)
        else:
            yield passed("slot", "source", f"{name} does not exist yet")
    elif slot.plugin != "pgoutput" or slot.database != server_identity(source)[1]:
        message = f"slot {name} belongs to another plugin or database"
        yield failed("slot", "source", message, "choose another name in source.slot")
    elif checkpoint is None:
        message = f"slot {name} exists, but the target has no checkpoint for it"
        remedy = "if no other replicator uses it: `replicator teardown`; else choose another name in source.slot"
        yield failed("slot", "source", message, remedy)
    elif checkpoint.phase == "new":
        yield passed("slot", "source", f"{name} was left by a start that was interrupted: the next one makes it anew")
    elif slot.is_lost:
        yield failed("slot", "source", f"slot {name} is lost: {slot.why_lost}", NEW_SNAPSHOT)
    elif slot.confirmed_flush_lsn and slot.confirmed_flush_lsn > checkpoint.applied_lsn:
        message = f"slot {name} stands at {slot.confirmed_flush_lsn}, past our checkpoint {checkpoint.applied_lsn}"
        yield failed("slot", "source", message, NEW_SNAPSHOT)
    elif slot.wal_status == "unreserved":
        yield warned("slot", "source", f"slot {name} is about to be lost", "start the service now")
    else:
        yield passed("slot", "source", f"{name} is {slot.wal_status} and fits the checkpoint")


def check_other_slots(source: Connection, target: Connection, settings: Settings) -> Iterator[Check]:
    """A lane that was taken out of the settings leaves a slot that nobody reads any more."""
    known = [lane.source.slot for lane in settings.split()]
    if not state.exists(target):
        return
    for (name,) in query(target, "SELECT slot FROM replicator.checkpoint WHERE slot <> ALL (%s) ORDER BY 1", known):
        slot = load_slot(source, name)
        if slot is not None and not slot.active:
            yield warned(
                "slot",
                "source",
                f"slot {name}, of which the target has the state, is not in the settings: nobody reads it, and it "
                "makes the source keep its WAL",
                "if it is a lane's, put it back into [lanes]; if nobody needs it, `replicator teardown` with "
                f'source.slot = "{name}" and its publication',
            )


def check_same_source(source: Connection, recorded: Recorded) -> Iterator[Check]:
    """The checkpoint counts positions of one cluster only."""
    if recorded.checkpoint is None:
        return
    identity = server_identity(source)
    if identity == (recorded.checkpoint.system_identifier, recorded.checkpoint.database):
        yield passed("same_source", "both", "the checkpoint belongs to this source")
    else:
        yield failed(
            "same_source",
            "both",
            "the target's checkpoint belongs to another source server or database",
            "correct the source DSN; after a restore or a switch of servers: " + OTHER_SOURCE,
        )


def check_drift(found: Survey) -> Iterator[Check]:
    """What has changed on either side since the tables were copied."""
    for drift in found.drifts:
        yield (failed if drift.stops else warned)("drift", "both", str(drift), drift.remedy, drift.table)
    for name in found.newcomers:
        yield failed("new_tables", "source", *newcomer_message(name), name)


def _names(tables: Iterable[TableName]) -> str:
    return ", ".join(show_table(name) for name in sorted(tables))
