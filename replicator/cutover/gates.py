"""The gates: everything that must hold before writers are stopped, looked at while they still write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from replicator.config import Settings
from replicator.cutover.report import Gate
from replicator.errors import NEW_SNAPSHOT, ReplicatorError
from replicator.model.schema import TableName, show_table
from replicator.postgres.catalog import server_identity
from replicator.postgres.connection import Connection, Side, query, translated
from replicator.routing.idmap import OnUnmapped
from replicator.routing.route import Fault, Route
from replicator.source.freeze import (
    load_blockers,
    load_read_only,
    may_store_read_only,
    roles_of_their_own_mind,
    tables_not_lockable,
)
from replicator.source.publication import require_publication
from replicator.source.slot import load_slot
from replicator.survey import Survey, load_recorded, merged, newcomer_message, survey
from replicator.target import quarantine, state
from replicator.target.idmaps import count_unmapped
from replicator.target.sequences import SequencePlan, load_values, plan_sequences, value_faults

_FRESH_S: Final = 30.0  # the service writes its checkpoint at least every few seconds
_LONG_TRANSACTION_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Subject:
    """What the gates look at: all lanes, or one of them. ``resumed``: an earlier cutover left it at cutting_over."""

    settings: Settings
    source: Connection
    target: Connection
    checkpoint: state.Checkpoint
    routes: tuple[Route, ...]
    sequences: SequencePlan
    max_lag_bytes: int
    resumed: bool

    @property
    def source_tables(self) -> list[TableName]:
        """The replicated tables of the source, each once."""
        return sorted({route.source.name for route in self.routes})


@dataclass(frozen=True, slots=True)
class Findings:
    """The gates' answers; ``subject`` is None where not even the state could be read."""

    gates: tuple[Gate, ...]
    subject: Subject | None

    @property
    def failed(self) -> tuple[Gate, ...]:
        """The gates that stop a cutover."""
        return tuple(gate for gate in self.gates if gate.state == "fail")


def look(settings: Settings, source: Connection, target: Connection, max_lag_bytes: int) -> Findings:
    """Look at every gate. Changes nothing on either side.

    Raises:
        ConfigError, TransientError: a server cannot be asked.
    """
    lanes = settings.split()
    recorded = [load_recorded(target, lane.source.slot) for lane in lanes]
    checkpoints = [each.checkpoint for each in recorded if each.checkpoint is not None]
    if len(checkpoints) < len(lanes):
        return Findings(tuple(_unknown(lane) for lane, each in zip(lanes, recorded, strict=True)
                              if each.checkpoint is None), None)  # fmt: skip
    surveys = [survey(lane, source, target, each.copied_tables, closely=True)
               for lane, each in zip(lanes, recorded, strict=True)]  # fmt: skip
    found = merged(surveys)
    gates = [*(_from_fault("routes", fault) for fault in found.faults), *_drift(found)]
    with translated("source"):
        sequences = plan_sequences(source, target, found.routes)
    resumed = any(checkpoint.phase == "cutting_over" for checkpoint in checkpoints)
    whole = Subject(settings, source, target, checkpoints[0], found.routes, sequences, max_lag_bytes, resumed)
    for side, look_at in _LANE_GATES:
        for lane, checkpoint, one in zip(lanes, checkpoints, surveys, strict=True):
            subject = replace(whole, settings=lane, checkpoint=checkpoint, routes=one.routes)
            with translated(side):
                gates += [replace(gate, message=lane.prefix + gate.message) for gate in look_at(subject)]
    for side, look_at in _GATES:
        with translated(side):
            gates += look_at(whole)
    return Findings(tuple(gates), whole)


def _unknown(lane: Settings) -> Gate:
    text = f"{lane.prefix}nothing has been replicated with slot {lane.source.slot} yet"
    return Gate("service", "fail", text, f"start `{lane.run_command}`")


def _drift(found: Survey) -> Iterator[Gate]:
    """What has changed on either side since the tables were copied: after the cutover nobody can bring it."""
    for drift in found.drifts:
        yield Gate("drift", "fail" if drift.stops else "warn", str(drift), drift.remedy)
    for name in found.newcomers:
        yield Gate("drift", "fail", *newcomer_message(name))


def _service(subject: Subject) -> Iterator[Gate]:
    slot = subject.settings.source.slot
    [(age_s,)] = query(
        subject.target, "SELECT extract(epoch FROM clock_timestamp() - %s)::float8", subject.checkpoint.updated_at
    )
    if not state.writer_is_running(subject.target, slot):
        yield Gate("service", "fail", "the service does not run",
                   f"start `{subject.settings.run_command}` and let it catch up")  # fmt: skip
    elif age_s > _FRESH_S:
        yield Gate("service", "fail", f"the service has not written its checkpoint for {age_s:.0f} s",
                   "see its log and `replicator status`")  # fmt: skip
    elif subject.checkpoint.problem:
        yield Gate("service", "fail", f"the service reports: {subject.checkpoint.problem}", "see `replicator status`")
    else:
        yield Gate("service", "pass", "the service runs")


def _phase(subject: Subject) -> Iterator[Gate]:
    phase = subject.checkpoint.phase
    if phase == "cutting_over":
        yield Gate("phase", "pass", "an unfinished cutover is resumed")
    elif phase in ("streaming", "catching_up"):
        yield Gate("phase", "pass", f"the phase is {phase}")
    else:
        yield Gate("phase", "fail", f"the phase is {phase}", "wait until the snapshot is done and the stream runs")


def _tables(subject: Subject) -> Iterator[Gate]:
    states = state.load_table_states(subject.target, subject.settings.source.slot)
    waiting = [route for route in subject.routes if route.name not in states or states[route.name].state != "copied"]
    if not subject.routes:
        yield Gate("tables", "fail", "there is nothing to replicate", "name the tables in the settings")
    for route in waiting:
        known = states[route.name].state if route.name in states else "not part of the snapshot"
        yield Gate("tables", "fail", f"{route} is not copied: {known}", "wait for its copy, or order it with "
                   f"`replicator snapshot --table {route}`")  # fmt: skip
    if subject.routes and not waiting:
        yield Gate("tables", "pass", f"{len(subject.routes)} tables are copied")


def _identity(subject: Subject) -> Iterator[Gate]:
    known = subject.checkpoint.system_identifier, subject.checkpoint.database
    if server_identity(subject.source) != known:
        yield Gate("source", "fail", "this source is not the one that the target was replicated from",
                   "correct the source's DSN")  # fmt: skip


def _publication(subject: Subject) -> Iterator[Gate]:
    try:
        states = state.load_table_states(subject.target, subject.settings.source.slot)
        published = {name: each.published for name, each in states.items()}
        publication = subject.settings.source.publication
        require_publication(subject.source, publication, subject.routes, published=published)
    except ReplicatorError as exc:
        yield Gate("publication", "fail", exc.message, exc.hint)


def _slot(subject: Subject) -> Iterator[Gate]:
    slot = load_slot(subject.source, subject.settings.source.slot)
    remedy = "see `replicator status`"
    if slot is None:
        yield Gate("slot", "fail", "the slot is gone from the source", NEW_SNAPSHOT)
    elif slot.is_lost:
        yield Gate("slot", "fail", f"the slot is lost: {slot.why_lost}", NEW_SNAPSHOT)
    elif slot.wal_status == "unreserved":
        yield Gate("slot", "fail", "the slot may be lost at any moment", "raise max_slot_wal_keep_size on the source")
    elif not slot.active:
        yield Gate("slot", "fail", "nobody reads from the slot", remedy)
    else:
        yield Gate("slot", "pass", f"the slot is active, its WAL {slot.wal_status}")


def _lag(subject: Subject) -> Iterator[Gate]:
    [(lag,)] = query(
        subject.source,
        "SELECT greatest(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), %s::pg_lsn), 0)::bigint",
        str(subject.checkpoint.applied_lsn),
    )
    text = f"the target is {lag} bytes of WAL behind, {subject.max_lag_bytes} are allowed"
    if lag > subject.max_lag_bytes:
        yield Gate("lag", "fail", text, "wait for the stream to catch up, or raise --max-lag-bytes")
    else:
        yield Gate("lag", "pass", text)


def _quarantine(subject: Subject) -> Iterator[Gate]:
    count = quarantine.count(subject.target, subject.settings.source.slot)
    if count:
        yield Gate("quarantine", "fail", f"{count} changes that the target refused are in quarantine",
                   "`replicator quarantine list` shows them; mend the target, then `replicator quarantine retry`, or "
                   "`replicator quarantine drop`")  # fmt: skip


def _unmapped(subject: Subject) -> Iterator[Gate]:
    count = count_unmapped(subject.target)
    if not count:
        return
    strict = any(spec.on_unmapped is OnUnmapped.STOP for spec in subject.settings.map_specs)
    yield Gate("unmapped_ids", "fail" if strict else "warn", f"{count} source IDs have no target ID",
               "`replicator users status` lists them; `replicator users import` adds them to the map")  # fmt: skip


def _indexes(subject: Subject) -> Iterator[Gate]:
    [(count,)] = query(subject.target, "SELECT count(*) FROM replicator.deferred_index WHERE state = 'dropped'")
    if count:
        yield Gate("indexes", "warn", f"{count} deferred indexes are not rebuilt yet",
                   "nothing to do: they are rebuilt before the source is frozen")  # fmt: skip


def _constraints(subject: Subject) -> Iterator[Gate]:
    routes = {route.target.oid: route for route in subject.routes}
    rows = query(
        subject.target,
        """
        SELECT conrelid::bigint, conname::text FROM pg_catalog.pg_constraint
        WHERE NOT convalidated AND conrelid = ANY (%s) ORDER BY 1, 2
        """,
        list(routes),
    )
    for oid, name in rows:
        yield Gate("constraints", "warn", f"constraint {name} of {routes[oid]} is NOT VALID on the target",
                   "left as it is; ALTER TABLE … VALIDATE CONSTRAINT checks it")  # fmt: skip


def _sequences(subject: Subject) -> Iterator[Gate]:
    plan = subject.sequences
    faults = list(plan.faults)
    if not faults:
        faults += value_faults(plan.pairs, load_values(subject.source, plan.pairs))
    yield from (_from_fault("sequences", fault) for fault in faults)
    for name in plan.unmatched:
        yield Gate("sequences", "warn", f"the target has no sequence {show_table(name)}; no column uses it",
                   "create it if a function needs it: it is then set with the others")  # fmt: skip
    if not faults:
        yield Gate("sequences", "pass", f"{len(plan.pairs)} sequences will be set")


def _freeze(subject: Subject) -> Iterator[Gate]:
    closed = tables_not_lockable(subject.source, subject.source_tables)
    if closed:
        yield Gate("freeze", "fail", f"the source's role may not lock {', '.join(closed)}",
                   "make it the owner, or GRANT UPDATE, DELETE or TRUNCATE")  # fmt: skip
    if not may_store_read_only(subject.source):
        yield Gate("freeze", "warn", "the source's role may not set the database read-only: only the lock holds "
                   "writers off, and after it is released nothing does",
                   "connect as the database's owner, or close the applications first")  # fmt: skip
    roles = roles_of_their_own_mind(subject.source)
    if roles:
        yield Gate("freeze", "warn", f"default_transaction_read_only is set for {', '.join(roles)}: the database's "
                   "setting does not reach these roles", "stop their sessions before the cutover")  # fmt: skip
    if not subject.resumed and load_read_only(subject.source) == "on":
        yield Gate("freeze", "warn", "the source database is set read-only already",
                   "it will be found so again if the cutover is undone")  # fmt: skip


def _transactions(subject: Subject) -> Iterator[Gate]:
    for blocker in load_blockers(subject.source, subject.source_tables, _LONG_TRANSACTION_S):
        who = f"process {blocker.pid} ({blocker.role})" if blocker.pid else f"a prepared transaction ({blocker.role})"
        yield Gate("transactions", "warn", f"{who} holds locks for {blocker.seconds:.0f} s: the freeze waits for it",
                   "let it end, or end it, before the cutover")  # fmt: skip


def _from_fault(name: str, fault: Fault) -> Gate:
    return Gate(name, "fail", f"{show_table(fault.table)}: {fault.message}", fault.remedy)


_Gates = tuple[tuple[Side, Callable[[Subject], Iterator[Gate]]], ...]

_LANE_GATES: Final[_Gates] = (
    ("source", _identity),
    ("target", _service),
    ("target", _phase),
    ("target", _tables),
    ("source", _publication),
    ("source", _slot),
    ("source", _lag),
    ("target", _quarantine),
)
_GATES: Final[_Gates] = (
    ("target", _unmapped),
    ("target", _indexes),
    ("target", _constraints),
    ("source", _sequences),
    ("source", _freeze),
    ("source", _transactions),
)
