"""The recorded steps: table ``replicator.cutover_step``, and the lock that lets only one cutover run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from psycopg.types.json import Jsonb

from replicator.config import Settings
from replicator.cutover import transitions
from replicator.cutover.report import Detail, StepRecord
from replicator.cutover.transitions import ORDER, State, States, Step
from replicator.errors import StateError
from replicator.postgres.connection import Connection, connect, query, translated
from replicator.postgres.session import Session, end
from replicator.target.state import load_checkpoint, try_lock

Progress = Callable[[StepRecord], None]


def lock_cutover(conn: Connection, slot: str) -> None:
    """Become the only cutover of ``slot``, for as long as this session lives.

    Raises:
        StateError: another one runs.
    """
    if not try_lock(conn, f"cutover of {slot}"):
        raise StateError(f"another cutover of slot {slot} is running", hint="watch it with `replicator status`")


def connect_target(settings: Settings, lost: Connection | None = None) -> Connection:
    """A session on the target that holds the cutover's lock.

    Args:
        lost: our session before. It may be lost to us only: then the server still has its end, with the lock.

    Raises:
        StateError: another cutover runs.
    """
    conn = connect(settings.target.dsn, "target", purpose="cutover")
    try:
        with translated("target"):
            if isinstance(lost, Session) and lost.peer is not None:
                end(conn, lost.peer)
            lock_cutover(conn, settings.source.slot)
    except BaseException:
        conn.close()
        raise
    return conn


def load_steps(conn: Connection, slot: str) -> dict[Step, StepRecord]:
    """All steps in their order; those never recorded are pending."""
    rows = query(
        conn,
        "SELECT step, state, started_at, finished_at, detail FROM replicator.cutover_step WHERE slot = %s",
        slot,
    )
    found = {Step(step): StepRecord(Step(step), State(state), *rest) for step, state, *rest in rows}
    return {step: found.get(step, StepRecord(step, State.PENDING)) for step in ORDER}


def states_of(records: Mapping[Step, StepRecord]) -> States:
    """The states alone."""
    return {step: record.state for step, record in records.items()}


class Journal:
    """The steps of one cutover: every move is checked, written to the target and told to ``progress``."""

    def __init__(self, conn: Connection, slots: Sequence[str], progress: Progress | None = None) -> None:
        """Reads what an earlier attempt left. ``conn`` is in autocommit mode and may be replaced when it breaks.

        ``slots``: of all lanes. Their phases move together; the steps stand under the first.
        """
        self.conn = conn
        self._slot = slots[0]
        self._slots = list(slots)
        self._progress = progress or (lambda _: None)
        self.records: dict[Step, StepRecord] = {}
        self.resumed = False
        self.reload()

    def reload(self) -> None:
        """Read the steps, and whether an earlier attempt left the source closed."""
        with translated("target"):
            self.records = load_steps(self.conn, self._slot)
            checkpoints = [load_checkpoint(self.conn, slot) for slot in self._slots]
        # The phase moves in the same transactions as freeze and undo, so it outlives any number of broken attempts.
        self.resumed = any(known is not None and known.phase == "cutting_over" for known in checkpoints)

    @property
    def states(self) -> States:
        """The states as recorded."""
        return states_of(self.records)

    def begin(self) -> None:
        """Start an attempt: all steps pending but those that outlived the last one. Freeze keeps what it must restore.

        Raises:
            StateError: the cutover is finalized.
        """
        states = transitions.begin(self.states, resumed=self.resumed)
        fresh = {
            step: self.records[step] if state is State.DONE else StepRecord(step, state)
            for step, state in states.items()
        }
        if self.resumed:
            old = self.records[Step.FREEZE].detail
            kept = {key: old[key] for key in ("previous_read_only",) if key in old}
            fresh[Step.FREEZE] = StepRecord(Step.FREEZE, State.PENDING, detail=kept)
        with translated("target"), self.conn.transaction():
            for record in fresh.values():
                self._write(record)
        self.records = fresh

    def move(self, step: Step, to: State, detail: Detail | None = None, *, phase: str | None = None) -> None:
        """Move a step, add to its detail and, in the same transaction, move the replication's phase.

        Raises:
            StateError: that move is not legal.
        """
        transitions.move(self.states, step, to)
        with translated("target"), self.conn.transaction():
            if phase is not None:
                self._set_phase(phase)
            [(now,)] = query(self.conn, "SELECT clock_timestamp()")
            old = self.records[step]
            record = StepRecord(
                step,
                to,
                now if to is State.RUNNING else old.started_at,
                None if to in (State.RUNNING, State.PENDING) else now,
                {**old.detail, **(detail or {})},
            )
            self._write(record)
        self.records[step] = record
        self._progress(record)

    def add(self, step: Step, detail: Detail) -> None:
        """Add to a step's detail without moving it."""
        old = self.records[step]
        record = StepRecord(step, old.state, old.started_at, old.finished_at, {**old.detail, **detail})
        with translated("target"):
            self._write(record)
        self.records[step] = record

    def undo(self, failed: Step | None, detail: Detail | None = None) -> None:
        """Record that the attempt was given up and that the source is open: one transaction, phase streaming again."""
        undone = transitions.undo(self.states, failed, resumed=self.resumed)
        changed = []
        with translated("target"), self.conn.transaction():
            [(now,)] = query(self.conn, "SELECT clock_timestamp()")
            for step, state in undone.states.items():
                old = self.records[step]
                if state is not old.state:
                    more = (detail or {}) if step is failed else {}
                    changed.append(StepRecord(step, state, old.started_at, now, {**old.detail, **more}))
                    self._write(changed[-1])
            self.conn.execute(
                """
                UPDATE replicator.checkpoint SET phase = 'streaming', updated_at = clock_timestamp()
                WHERE slot = ANY (%s) AND phase = 'cutting_over'
                """,
                (self._slots,),
            )
        self.resumed = False
        for record in changed:
            self.records[record.step] = record
            self._progress(record)

    def _set_phase(self, phase: str) -> None:
        """Only forwards, only from the phases that lead here: a service that stopped for good must not be overruled."""
        moved = self.conn.execute(
            """
            UPDATE replicator.checkpoint SET phase = %s, updated_at = clock_timestamp()
            WHERE slot = ANY (%s) AND phase IN ('catching_up', 'streaming', 'cutting_over')
            """,
            (phase, self._slots),
        )
        if moved.rowcount != len(self._slots):
            names = " or ".join(self._slots)
            raise StateError(f"slot {names} is no longer in a phase that a cutover can start from")

    def _write(self, record: StepRecord) -> None:
        self.conn.execute(
            """
            INSERT INTO replicator.cutover_step (slot, step, position, state, started_at, finished_at, detail)
            VALUES (%s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (slot, step) DO UPDATE SET position = excluded.position, state = excluded.state,
                started_at = excluded.started_at, finished_at = excluded.finished_at, detail = excluded.detail
            """,
            (
                self._slot,
                record.step.value,
                ORDER.index(record.step),
                record.state.value,
                record.started_at,
                record.finished_at,
                Jsonb(dict(record.detail)),
            ),
        )
