"""Remove what we left: slot and publication on the source, our state on the target."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from psycopg import sql

from replicator.config import Settings
from replicator.errors import Refused, StateError, TransientError
from replicator.postgres.catalog import server_identity
from replicator.postgres.connection import Connection, connect, query, table_identifier, translated
from replicator.source.freeze import load_read_only
from replicator.source.publication import drop_publication, load_publication
from replicator.source.slot import SlotInfo, drop_slot, load_slot
from replicator.target import indexes, state

# With a column that names the slot.
_SLOT_TABLES = ("checkpoint", "table_state", "copied_part", "quarantine", "cutover_step")
_KEPT_WITH_ID_MAP = ("migration", "id_map", "unmapped_id")


@dataclass(frozen=True, slots=True)
class Removal:
    """What was removed, and what was kept and why; one line each."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]


def teardown(settings: Settings, *, keep_id_map: bool = False, skip_source: bool = False) -> Removal:
    """Remove slot and publication, those of every lane, and our state; parts that are gone already are no fault.

    The source comes first: a slot that nobody reads fills its disk, and the target's state tells whose slot it is.

    Args:
        keep_id_map: keep the ID maps and the list of unmapped IDs.
        skip_source: the source is gone for good; only the target is cleared.

    Raises:
        Refused: the service runs, a cutover is unfinished, or slot and state do not belong together.
        ReplicatorError: a side does not answer.
    """
    lanes = settings.split()
    removed: list[str] = []
    kept: list[str] = []
    with contextlib.closing(connect(settings.target.dsn, "target", purpose="teardown")) as target:
        with translated("target"):
            known = state.exists(target)
            checkpoints = [state.load_checkpoint(target, lane.source.slot) if known else None for lane in lanes]
            # Held to the end: a service that starts now must not find half of its state.
            for lane, checkpoint in zip(lanes, checkpoints, strict=True):
                _become_only_writer(target, lane.source.slot, checkpoint)
        if not skip_source:
            with contextlib.closing(_connect_source(settings)) as source, translated("source"):
                _clear_source(source, lanes, checkpoints, removed, kept)
        with translated("target"):
            _clear_target(target, [lane.source.slot for lane in lanes], keep_id_map, removed, kept)
    return Removal(tuple(removed), tuple(kept))


def _become_only_writer(target: Connection, slot: str, checkpoint: state.Checkpoint | None) -> None:
    try:
        state.lock_writer(target, slot)
    except StateError as exc:
        raise Refused(f"{exc.message}: nothing was removed", hint="stop it first") from exc
    if checkpoint is not None and checkpoint.phase == "cutting_over":
        raise Refused(
            "a cutover is unfinished and may hold the source closed: nothing was removed",
            hint="finish it with `replicator cutover`, or undo it with `replicator cutover abort`",
        )


def _connect_source(settings: Settings) -> Connection:
    try:
        return connect(settings.source.dsn, "source", purpose="teardown")
    except TransientError as exc:
        raise TransientError(
            f"{exc.message}; nothing was removed",
            hint="the slot must go first, or it fills the source's disk; --skip-source if that server is gone for good",
        ) from exc


def _clear_source(
    source: Connection,
    lanes: Sequence[Settings],
    checkpoints: Sequence[state.Checkpoint | None],
    removed: list[str],
    kept: list[str],
) -> None:
    slots = [load_slot(source, lane.source.slot) for lane in lanes]
    for slot, checkpoint in zip(slots, checkpoints, strict=True):
        _refuse_foreign(source, slot, checkpoint)
    for slot in slots:
        if slot is not None:
            try:
                drop_slot(source, slot.name)
            except StateError as exc:
                what = f"{', '.join(removed)} was removed, and no more" if removed else "nothing was removed"
                raise Refused(f"{exc.message}: {what}", hint=exc.hint) from exc
            removed.append(f"slot {slot.name} on the source")
    for name in (lane.source.publication for lane in lanes):
        publication = load_publication(source, name)
        if publication is not None and publication.is_ours:
            drop_publication(source, name)
            removed.append(f"publication {name} on the source")
        elif publication is not None:
            kept.append(f"publication {name} on the source: it belongs to another role")
    finalized = any(checkpoint is not None and checkpoint.phase == "cut_over" for checkpoint in checkpoints)
    if finalized and load_read_only(source) == "on":
        kept.append("the source's database setting default_transaction_read_only = on: the target has taken over")


def _refuse_foreign(source: Connection, slot: SlotInfo | None, checkpoint: state.Checkpoint | None) -> None:
    """The settings name the slot; that it is ours is known from the checkpoint, where there is one."""
    identity = server_identity(source)
    if checkpoint is not None and (checkpoint.system_identifier, checkpoint.database) != identity:
        raise Refused(
            "the target's state belongs to another source server or database: nothing was removed",
            hint="correct the source DSN; --skip-source if that server is gone for good",
        )
    if slot is not None and (slot.plugin, slot.database) != ("pgoutput", identity[1]):
        raise Refused(
            f"slot {slot.name} belongs to another plugin or database: nothing was removed",
            hint="correct source.slot",
        )
    if slot is not None and checkpoint is None:
        # Another replicator, stopped for the moment, may live on it.
        raise Refused(
            f"this target has no state of slot {slot.name}, so it may be another replicator's: nothing was removed",
            hint=f"if nobody needs it, drop it on the source: SELECT pg_drop_replication_slot('{slot.name}')",
        )


def _clear_target(target: Connection, slots: list[str], keep_id_map: bool, removed: list[str], kept: list[str]) -> None:
    if not state.exists(target):
        return
    kept += [f"index {name} on the target: it was missing and is built again" for name in _rebuild_indexes(target)]
    [(others,)] = query(
        target, "SELECT pg_catalog.string_agg(slot, ', ') FROM replicator.checkpoint WHERE slot <> ALL (%s)", slots
    )
    with target.transaction():
        if others:
            for table in _SLOT_TABLES:
                name = table_identifier(("replicator", table))
                target.execute(sql.SQL("DELETE FROM {} WHERE slot = ANY (%s)").format(name), (slots,))
            removed.append(f"the state of slot {', '.join(slots)} on the target")
            kept.append(
                f"schema replicator on the target: it holds the state of slot {others}, which the settings do not "
                "name; on its source that slot keeps WAL until a teardown of its own"
            )
        elif keep_id_map:
            _empty_all_but_id_maps(target)
            removed.append("the state in schema replicator on the target")
            kept.append("the ID maps in schema replicator on the target")
        else:
            state.drop(target)
            removed.append("schema replicator on the target")


def _rebuild_indexes(target: Connection) -> Iterator[str]:
    """An interrupted snapshot may have left indexes to be built again; only our state knows their definitions."""
    for index in indexes.pending(target):
        name = table_identifier(index.table).as_string(target)
        if query(target, "SELECT pg_catalog.to_regclass(%s) IS NOT NULL", name) == [(True,)]:
            indexes.rebuild(target, index)
            yield str(index)


def _empty_all_but_id_maps(target: Connection) -> None:
    # Emptied, not dropped: the schema stays whole, so that `users export` and a later run find what they know.
    rows = query(
        target,
        """
        SELECT relname::text FROM pg_catalog.pg_class
        WHERE relnamespace = 'replicator'::regnamespace AND relkind = 'r' AND relname <> ALL (%s)
        """,
        list(_KEPT_WITH_ID_MAP),
    )
    tables = [table_identifier(("replicator", name)) for (name,) in rows]
    if tables:
        target.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(tables)))
