"""Every Prometheus metric of the replicator, on the default registry.

Base units (bytes, seconds); counters get their ``_total`` from the client library. Labels hold only names
from a closed set (tables, maps, states), never an ID. Series that are known beforehand exist from the start
at 0, so that an alert on ``rate()`` sees the first increment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

from replicator import __version__, errors
from replicator.model.change import Op

# A `_created` gauge beside every counter doubles the exposition and helps nobody here.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library left its hint out

PHASES: Final = ("new", "copying", "catching_up", "streaming", "cutting_over", "cut_over")
SIDES: Final = ("source", "target")
WAL_STATUSES: Final = ("reserved", "extended", "unreserved", "lost")  # pg_replication_slots.wal_status
TABLE_STATES: Final = ("pending", "copying", "copied", "copy_requested")  # replicator.table_state.state
CUTOVER_STEPS: Final = ("check", "freeze", "fence", "drain", "sequences", "indexes", "verify", "finalize")
CUTOVER_STATES: Final = ("pending", "running", "done", "failed", "undone")
OTHER_ERROR: Final = "Other"  # the `kind` of an exception that is none of ours
ERROR_KINDS: Final = (
    *(
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ReplicatorError)
    ),
    OTHER_ERROR,
)

_BATCH_ROWS: Final = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 20_000, 50_000, 100_000)
_BATCH_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# Stream
LAG_BYTES: Final = Gauge("replicator_lag_bytes", "WAL bytes between the source and the checkpoint.")
LAG_SECONDS: Final = Gauge(
    "replicator_lag_seconds",
    "Now minus the source commit time of the last applied transaction; 0 if none is pending.",
)
RECEIVED_LSN_BYTES: Final = Gauge("replicator_received_lsn_bytes", "Last WAL position received, as a byte offset.")
APPLIED_LSN_BYTES: Final = Gauge("replicator_applied_lsn_bytes", "Checkpoint on the target, as a byte offset.")
LAST_COMMIT_TIMESTAMP_SECONDS: Final = Gauge(
    "replicator_last_commit_timestamp_seconds",
    "Source commit time of the last applied transaction, Unix time.",
)
PHASE: Final = Gauge("replicator_phase", "1 for the current phase, 0 for the others.", ["phase"])
TRANSACTIONS: Final = Counter("replicator_transactions", "Source transactions applied and committed.")
CHANGES: Final = Counter("replicator_changes", "Row changes applied and committed.", ["table", "op"])
BATCH_ROWS: Final = Histogram("replicator_batch_rows", "Row changes per applied batch.", buckets=_BATCH_ROWS)
BATCH_DURATION_SECONDS: Final = Histogram(
    "replicator_batch_duration_seconds",
    "From a batch's first statement to its commit.",
    buckets=_BATCH_SECONDS,
)
BATCH_REPLAYS: Final = Counter(
    "replicator_batch_replays", "Batches rolled back to their savepoint and applied one change at a time."
)
QUEUE_BYTES: Final = Gauge("replicator_queue_bytes", "Bytes received and not yet handed to the applier.")

# Snapshot
SNAPSHOT_ROWS: Final = Counter("replicator_snapshot_rows", "Rows copied by the snapshot.", ["table"])
SNAPSHOT_ROWS_ESTIMATED: Final = Gauge(
    "replicator_snapshot_rows_estimated", "Rows to copy, as the source's statistics estimate them.", ["table"]
)
SNAPSHOT_TABLE_STATE: Final = Gauge(
    "replicator_snapshot_table_state",
    "1 for the current state of a table, 0 for the others.",
    ["table", "state"],
)

# Rows that need a person
UNMAPPED_IDS: Final = Counter("replicator_unmapped_ids", "Source IDs first seen without a target ID.", ["map"])
QUARANTINED_ROWS: Final = Counter(
    "replicator_quarantined_rows", "Changes set aside: refused by the target, or waiting behind such a one.", ["table"]
)

# Slot
SLOT_RETAINED_BYTES: Final = Gauge("replicator_slot_retained_bytes", "WAL that the source keeps for the slot.")
SLOT_SAFE_BYTES: Final = Gauge(
    "replicator_slot_safe_bytes",
    "WAL that can still be written before the slot may be lost; +Inf if unlimited.",
)
SLOT_WAL_STATUS: Final = Gauge(
    "replicator_slot_wal_status", "1 for the slot's wal_status, 0 for the others.", ["status"]
)
SLOT_SECONDS_UNTIL_LOST: Final = Gauge(
    "replicator_slot_seconds_until_lost",
    "Time until the slot may be lost at the present rate; +Inf if never.",
)

# Faults
RECONNECTS: Final = Counter("replicator_reconnects", "Connections made again after one was lost.", ["side"])
ERRORS: Final = Counter("replicator_errors", "Errors by class, retried ones included.", ["kind"])

# Verification and cutover
VERIFY_DIFFERENCES: Final = Gauge(
    "replicator_verify_differences", "Rows missing, extra or different at the last verification.", ["table"]
)
CUTOVER_STEP: Final = Gauge(
    "replicator_cutover_step",
    "1 for the current state of a cutover step, 0 for the others.",
    ["step", "state"],
)
CUTOVER_WRITE_DOWNTIME_SECONDS: Final = Gauge(
    "replicator_cutover_write_downtime_seconds", "From the freeze of the source until the target took writes."
)

BUILD_INFO: Final = Gauge("replicator_build_info", "Always 1; the version is in the label.", ["version"])


def set_one_of(gauge: Gauge, label: str, value: str, values: Sequence[str], **fixed: str) -> None:
    """Set ``gauge`` to 1 where ``label`` is ``value`` and to 0 for the other ``values``.

    Args:
        fixed: the gauge's other labels, the same for all these series.

    Raises:
        ValueError: ``value`` is none of ``values``; a typing error would otherwise leave every series at 0.
    """
    if value not in values:
        raise ValueError(f"{label} {value!r} is none of {', '.join(values)}")
    for each in values:
        gauge.labels(**{label: each}, **fixed).set(each == value)


def set_phase(phase: str) -> None:
    """Make ``phase`` (one of ``PHASES``) the current one."""
    set_one_of(PHASE, "phase", phase, PHASES)


def set_wal_status(status: str) -> None:
    """Record ``pg_replication_slots.wal_status`` (one of ``WAL_STATUSES``)."""
    set_one_of(SLOT_WAL_STATUS, "status", status, WAL_STATUSES)


def set_table_state(table: str, state: str) -> None:
    """Record the snapshot state (one of ``TABLE_STATES``) of ``table``."""
    set_one_of(SNAPSHOT_TABLE_STATE, "state", state, TABLE_STATES, table=table)


def set_cutover_step(step: str, state: str) -> None:
    """Record the state (one of ``CUTOVER_STATES``) of a cutover step (one of ``CUTOVER_STEPS``)."""
    if step not in CUTOVER_STEPS:
        raise ValueError(f"step {step!r} is none of {', '.join(CUTOVER_STEPS)}")
    set_one_of(CUTOVER_STEP, "state", state, CUTOVER_STATES, step=step)


def count_error(error: BaseException) -> None:
    """Count ``error`` under its class, or under ``Other`` if it is none of ours."""
    kind = type(error).__name__
    ERRORS.labels(kind=kind if kind in ERROR_KINDS else OTHER_ERROR).inc()


def init_tables(names: Iterable[str]) -> None:
    """Create the series of these tables (names as people write them: ``model.schema.show_table``) at 0."""
    for table in names:
        for op in Op:
            CHANGES.labels(table=table, op=op.value)
        for metric in (SNAPSHOT_ROWS, SNAPSHOT_ROWS_ESTIMATED, QUARANTINED_ROWS, VERIFY_DIFFERENCES):
            metric.labels(table=table)
        for state in TABLE_STATES:
            SNAPSHOT_TABLE_STATE.labels(table=table, state=state)


def init_maps(names: Iterable[str]) -> None:
    """Create the series of these ID maps at 0."""
    for name in names:
        UNMAPPED_IDS.labels(map=name)


def _init_known() -> None:
    for phase in PHASES:
        PHASE.labels(phase=phase)
    for side in SIDES:
        RECONNECTS.labels(side=side)
    for status in WAL_STATUSES:
        SLOT_WAL_STATUS.labels(status=status)
    for kind in ERROR_KINDS:
        ERRORS.labels(kind=kind)
    for step in CUTOVER_STEPS:
        for state in CUTOVER_STATES:
            CUTOVER_STEP.labels(step=step, state=state)
    # Until the slot has been looked at, "no limit known" must not read as "lost in 0 seconds".
    SLOT_SAFE_BYTES.set(float("inf"))
    SLOT_SECONDS_UNTIL_LOST.set(float("inf"))
    BUILD_INFO.labels(version=__version__).set(1)


_init_known()
