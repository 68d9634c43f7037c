"""The state of a replication as both sides tell it: what ``status``, the status page and the metrics show."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import psycopg

from replicator.config import Settings
from replicator.errors import NEW_SNAPSHOT, ReplicatorError
from replicator.model.lsn import Lsn
from replicator.model.schema import show_table
from replicator.postgres.catalog import server_identity
from replicator.postgres.connection import Connection, Side, connect, query, translate
from replicator.source.forecast import Forecast
from replicator.source.slot import SlotInfo, load_slot
from replicator.survey import Survey, newcomer_message, survey
from replicator.target import quarantine, state
from replicator.target.idmaps import count_unmapped

RUNNING_PHASES = ("copying", "catching_up", "streaming", "cutting_over")
STREAMING_PHASES = ("catching_up", "streaming", "cutting_over")

_SOON_LOST_S = 3600
_RESCUE = "raise max_slot_wal_keep_size on the source now (a reload is enough), and see what holds the service up"
_LONG_LAG_S = 60
_STALE_S = 5  # the service writes its checkpoint every second, unless it is busy with a large transaction
_LOOK_EVERY_S = 10  # at the catalogs of both sides
_LONG_WAIT_S = 3.0
_STATEMENT_TIMEOUT = "5s"  # a status that hangs is worse than one that says so

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """The slot as the source shows it. ``safe_bytes`` None: no limit; ``seconds_until_lost`` None: no end in sight."""

    name: str
    active: bool
    wal_status: str
    retained_bytes: int
    safe_bytes: int | None
    seconds_until_lost: float | None
    invalidation_reason: str | None = None  # server 17+
    failover: bool = False  # standbys keep it too


@dataclass(frozen=True, slots=True)
class TableStatus:
    """One table's part."""

    name: str
    state: str
    rows_copied: int
    rows_applied: int
    snapshot_lsn: str | None
    differences: int | None = None  # of the last verification


@dataclass(frozen=True, slots=True)
class StepStatus:
    """One step of the cutover; times in ISO 8601."""

    step: str
    state: str
    started_at: str | None
    finished_at: str | None
    write_downtime_seconds: float | None = None  # of `finalize`


@dataclass(frozen=True, slots=True)
class Status:
    """One reading. None where a value cannot be known: no snapshot yet, or a side that does not answer."""

    phase: str = "new"
    applied_lsn: Lsn | None = None
    source_lsn: Lsn | None = None
    lag_bytes: int | None = None
    lag_seconds: float | None = None
    slot: SlotStatus | None = None
    tables: tuple[TableStatus, ...] = ()
    unmapped_ids: int = 0
    quarantined_rows: int = 0
    cutover: tuple[StepStatus, ...] = ()
    problem: str | None = None  # what the service itself reports
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # worth knowing, and no problem
    waits: tuple[str, ...] = ()  # what the service waits for; among the problems too
    lanes: tuple[LaneStatus, ...] = ()  # where there are several

    @property
    def healthy(self) -> bool:
        """Nothing needs a person."""
        return not self.problems

    def to_json(self) -> dict[str, object]:
        """The document of ``status --json``."""
        return {
            "phase": self.phase,
            "applied_lsn": None if self.applied_lsn is None else str(self.applied_lsn),
            "source_lsn": None if self.source_lsn is None else str(self.source_lsn),
            "lag_bytes": self.lag_bytes,
            "lag_seconds": self.lag_seconds,
            "slot": None if self.slot is None else asdict(self.slot),
            "tables": [asdict(table) for table in self.tables],
            "unmapped_ids": self.unmapped_ids,
            "quarantined_rows": self.quarantined_rows,
            "cutover": [asdict(step) for step in self.cutover],
            "problem": self.problem,
            "healthy": self.healthy,
            "problems": list(self.problems),
            "notes": list(self.notes),
            **({"lanes": [lane.to_json() for lane in self.lanes]} if self.lanes else {}),
        }


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """One lane among several; its tables, cutover and notes are told with the others'."""

    lane: int
    status: Status

    def to_json(self) -> dict[str, object]:
        """The entry of ``lanes`` in ``status --json``."""
        told = self.status.to_json()
        keys = ("slot", "phase", "applied_lsn", "source_lsn", "lag_bytes", "lag_seconds", "quarantined_rows", "problem",
                "healthy", "problems")  # fmt: skip
        return {"lane": self.lane, **{key: told[key] for key in keys}}


@dataclass(frozen=True, slots=True)
class _TargetSide:
    """What the target tells."""

    checkpoint: state.Checkpoint | None = None
    age_s: float = 0.0  # since the checkpoint was written, by the target's clock
    writer_runs: bool = False
    tables: tuple[TableStatus, ...] = ()
    unmapped_ids: int = 0
    quarantined_rows: int = 0
    cutover: tuple[StepStatus, ...] = ()
    waits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _SourceSide:
    """What the source tells; only ``error`` if it does not answer."""

    lsn: Lsn | None = None
    slot: SlotInfo | None = None
    identity: tuple[str, str] = ("", "")
    error: str = ""


@dataclass(slots=True)
class _Session:
    """One connection that is made when needed and made again when it broke."""

    dsn: str
    side: Side
    conn: Connection | None = field(default=None, repr=False)

    def call(self, read: Callable[[Connection], T]) -> T:
        """Run ``read``; once more on a new connection if the old one had gone."""
        reused = self.conn is not None
        try:
            return self._once(read)
        except ReplicatorError:
            if not reused:
                raise
            return self._once(read)

    def _once(self, read: Callable[[Connection], T]) -> T:
        try:
            if self.conn is None:
                self.conn = connect(self.dsn, self.side, purpose="status")
                self.conn.execute(f"SET statement_timeout = '{_STATEMENT_TIMEOUT}'; SET lock_timeout = '500ms'")
            return read(self.conn)
        except psycopg.Error as exc:
            self.close()
            raise translate(exc, self.side) from exc

    def close(self) -> None:
        if self.conn is not None:
            self.conn.close()
            self.conn = None


class StatusReader:
    """Reads the status again and again over two connections that it keeps. Not safe for several threads at once."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._slot = settings.source.slot
        self._drift: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
        self._next_look = 0.0
        self._source = _Session(settings.source.dsn, "source")
        self._target = _Session(settings.target.dsn, "target")
        self._clock = clock
        self._forecast = Forecast()

    def read(self) -> Status:
        """One reading. ``seconds_until_lost`` is the better the longer this reader reads, up to a minute.

        Raises:
            ReplicatorError: the target does not answer. A source that does not is a problem of the status.
        """
        target = self._target.call(self._read_target)
        try:
            source = self._source.call(self._read_source)
        except ReplicatorError as exc:
            source = _SourceSide(error=f"the source does not answer: {exc.message}")
        if target.checkpoint is None or target.checkpoint.phase not in STREAMING_PHASES:
            self._drift = (), ()
        elif not source.error and self._clock() >= self._next_look:
            self._look_for_drift()
        return self._combine(target, source)

    def _look_for_drift(self) -> None:
        """What has changed on either side since the tables were copied: problems, and notes."""
        self._next_look = self._clock() + _LOOK_EVERY_S

        def look(target: Connection) -> Survey:
            states = state.load_table_states(target, self._slot)
            return self._source.call(lambda source: survey(self._settings, source, target, states))

        with contextlib.suppress(ReplicatorError):  # a table is locked, say: the next time
            found = self._target.call(look)
            problems = [str(drift) for drift in found.stopping]
            problems += [f"{show_table(fault.table)}: {fault.message}" for fault in found.faults]
            problems += [newcomer_message(name)[0] for name in found.newcomers]
            self._drift = tuple(problems), tuple(str(drift) for drift in found.notes)

    def close(self) -> None:
        """Close both connections; a later `read` opens them again."""
        self._source.close()
        self._target.close()

    def _read_target(self, conn: Connection) -> _TargetSide:
        if not state.exists(conn):
            return _TargetSide()
        checkpoint = state.load_checkpoint(conn, self._slot)
        if checkpoint is None:
            return _TargetSide(unmapped_ids=count_unmapped(conn))
        [(now,)] = query(conn, "SELECT clock_timestamp()")
        return _TargetSide(
            checkpoint=checkpoint,
            age_s=max((now - checkpoint.updated_at).total_seconds(), 0.0),
            writer_runs=state.writer_is_running(conn, self._slot),
            tables=tuple(_table(table) for table in state.load_table_states(conn, self._slot).values()),
            unmapped_ids=count_unmapped(conn),
            quarantined_rows=quarantine.count(conn, self._slot),
            cutover=_load_steps(conn, self._slot),
            waits=tuple(state.load_waits(conn, self._slot, _LONG_WAIT_S)),
        )

    def _read_source(self, conn: Connection) -> _SourceSide:
        [(lsn,)] = query(conn, "SELECT pg_catalog.pg_current_wal_lsn()::text")
        return _SourceSide(Lsn.parse(lsn), load_slot(conn, self._slot), server_identity(conn))

    def _combine(self, target: _TargetSide, source: _SourceSide) -> Status:
        checkpoint = target.checkpoint
        lag_bytes, lag_seconds = _lag(target, source)
        slot = self._slot_status(source, lag_bytes, lag_seconds)
        return Status(
            phase=checkpoint.phase if checkpoint else "new",
            applied_lsn=checkpoint.applied_lsn if checkpoint and checkpoint.phase != "new" else None,
            source_lsn=source.lsn,
            lag_bytes=lag_bytes,
            lag_seconds=lag_seconds,
            slot=slot,
            tables=target.tables,
            unmapped_ids=target.unmapped_ids,
            quarantined_rows=target.quarantined_rows,
            cutover=target.cutover,
            problem=checkpoint.problem if checkpoint else None,
            problems=(*_problems(target, source, slot, lag_seconds, self._settings.run_command), *self._drift[0]),
            notes=self._drift[1],
            waits=target.waits,
        )

    def _slot_status(self, source: _SourceSide, lag_bytes: int | None, lag_seconds: float | None) -> SlotStatus | None:
        slot = source.slot
        self._forecast.add(self._clock(), source.lsn, slot)
        if slot is None:
            return None
        return SlotStatus(
            name=slot.name,
            active=slot.active,
            wal_status="lost" if slot.is_lost else slot.wal_status,
            retained_bytes=slot.retained_bytes,
            safe_bytes=0 if slot.is_lost else slot.safe_bytes,
            seconds_until_lost=self._forecast.seconds_until_lost(slot, lag_bytes=lag_bytes, lag_seconds=lag_seconds),
            invalidation_reason=slot.invalidation_reason,
            failover=slot.failover,
        )


def _table(table: state.TableState) -> TableStatus:
    lsn = None if table.snapshot_lsn is None else str(table.snapshot_lsn)
    return TableStatus(
        show_table(table.name), table.state, table.rows_copied, table.rows_applied, lsn, table.differences
    )


def _load_steps(conn: Connection, slot: str) -> tuple[StepStatus, ...]:
    rows: list[tuple[Any, ...]] = query(
        conn,
        """
        SELECT step, state, started_at, finished_at, (detail ->> 'write_downtime_seconds')::float8
        FROM replicator.cutover_step WHERE slot = %s ORDER BY position
        """,
        slot,
    )
    return tuple(
        StepStatus(step, name, _iso(started), _iso(finished), downtime)
        for step, name, started, finished, downtime in rows
    )


def _iso(time: dt.datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _lag(target: _TargetSide, source: _SourceSide) -> tuple[int | None, float | None]:
    """Lag in bytes and seconds. What the source writes after the cutover is not ours to apply."""
    checkpoint = target.checkpoint
    if checkpoint is None or checkpoint.phase == "new":  # announced: there is no position yet
        return None, None
    if checkpoint.phase == "cut_over":
        return 0, 0.0
    size = None if source.lsn is None else max(source.lsn - checkpoint.applied_lsn, 0)
    if size == 0:
        return 0, 0.0
    if target.writer_runs and target.age_s < _STALE_S:
        return size, checkpoint.lag_seconds
    # Nobody measures: what was recorded last has grown older since.
    return size, round((checkpoint.lag_seconds or 0.0) + target.age_s, 3)


def _problems(
    target: _TargetSide, source: _SourceSide, slot: SlotStatus | None, lag_seconds: float | None, run_command: str
) -> list[str]:
    """Why somebody should look, one line each."""
    checkpoint = target.checkpoint
    found = [source.error] if source.error else []
    if checkpoint is None:
        return found
    if checkpoint.problem:
        found.append(checkpoint.problem)
    if target.quarantined_rows:
        found.append(
            f"{target.quarantined_rows} changes are in quarantine, and both sides differ there: "
            "see `replicator quarantine list`"
        )
    if checkpoint.phase not in RUNNING_PHASES:
        return found
    found += target.waits
    if not target.writer_runs:
        found.append(f"the service is not running, at phase {checkpoint.phase}: start it with `{run_command}`")
    if checkpoint.phase == "streaming" and lag_seconds is not None and lag_seconds > _LONG_LAG_S:
        found.append(f"the target is {lag_seconds:.0f} s behind")
    if not source.error:
        if source.identity != (checkpoint.system_identifier, checkpoint.database):
            found.append("the source is another server or database than the one that was copied")
        found += _slot_problems(
            source.slot, slot, is_streaming=target.writer_runs and checkpoint.phase in STREAMING_PHASES
        )
    return found


def _slot_problems(slot: SlotInfo | None, status: SlotStatus | None, *, is_streaming: bool) -> list[str]:
    if slot is None or status is None:
        return [f"the slot is gone from the source: {NEW_SNAPSHOT}"]
    if slot.is_lost:
        return [f"slot {slot.name} is lost: {slot.why_lost}; {NEW_SNAPSHOT}"]
    found = []
    forecast = status.seconds_until_lost
    if slot.wal_status == "unreserved":
        found.append(f"slot {slot.name} is about to be lost: its WAL goes at the source's next checkpoint; {_RESCUE}")
    elif forecast is not None and forecast < _SOON_LOST_S and forecast == slot.idle_seconds_left:
        found.append(
            f"nobody reads slot {slot.name}: idle_replication_slot_timeout may end it in {forecast / 60:.0f} min; "
            "set that to 0 on the source (a reload is enough), or start the service"
        )
    elif forecast is not None and forecast < _SOON_LOST_S:
        found.append(f"slot {slot.name} may be lost in {forecast / 60:.0f} min at the present rate; {_RESCUE}")
    if is_streaming and not slot.active:
        found.append(f"slot {slot.name} is not being read: the service is not connected to the source")
    return found
