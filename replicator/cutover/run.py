"""Run a cutover from its gates to its report; undo it when anything fails before the point of no return."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from replicator.config import Settings
from replicator.cutover import finalize, gates
from replicator.cutover.interrupts import Interrupts
from replicator.cutover.journal import Journal, Progress, lock_cutover
from replicator.cutover.report import CutoverRefused, CutoverReport, Outcome
from replicator.cutover.steps import STEPS, Options, Site, Verification, intent
from replicator.cutover.transitions import State, Step, is_finalized, next_step
from replicator.cutover.undo import give_up, reopen, report_of
from replicator.errors import Refused, ReplicatorError
from replicator.failpoints import failpoint
from replicator.logs import get_logger
from replicator.postgres.connection import Connection, Side, connect, translated
from replicator.target import state

_log = get_logger(__name__)

DEFAULT_MAX_LAG_BYTES: Final = 16 << 20
DEFAULT_TIMEOUT_S: Final = 300.0


def run_cutover(
    settings: Settings,
    *,
    dry_run: bool = False,
    max_lag_bytes: int = DEFAULT_MAX_LAG_BYTES,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    verify: Verification = "full",
    progress: Progress | None = None,
) -> CutoverReport:
    """Cut over, or go on with an unfinished cutover; of a finalized one the report.

    Args:
        dry_run: look at the gates only; the report's ``ok`` is the answer, nothing is recorded.
        max_lag_bytes: WAL that the target may be behind when the source is frozen.
        timeout_s: how long writers may be kept waiting before everything is undone.
        verify: compare rows, counts or nothing while the source is frozen.
        progress: called with each step whenever its state changes.

    Raises:
        CutoverRefused: a gate failed or the cutover was undone; the source takes writes.
        StateError: another cutover runs, or the outcome is unknown.
        ConfigError, TransientError: a server cannot be reached; TransientError also when the source could not be
            reopened, which its hint then says.
    """
    if dry_run:
        return _look(settings, max_lag_bytes)
    with contextlib.ExitStack() as stack:
        site = _open(stack, settings, Options(max_lag_bytes, timeout_s, verify), progress)
        if not is_finalized(site.journal.states):
            with Interrupts() as interrupts:
                _go(site, interrupts)
        else:
            finalize.close_again(site)
        return report_of(site, "finalized")


def abort(settings: Settings, progress: Progress | None = None) -> CutoverReport:
    """Undo an unfinished cutover whose process is gone, and reopen the source.

    Raises:
        Refused: there is none, or it is finalized.
        StateError: it still runs: send it SIGINT instead.
    """
    with contextlib.ExitStack() as stack:
        site = _open(stack, settings, Options(0, 0.0, "none"), progress)
        if is_finalized(site.journal.states):
            raise Refused(
                "the cutover is finalized: the target has taken over, and there is no way back",
                hint="the source is read-only by its database setting default_transaction_read_only",
            )
        if not site.journal.resumed:
            raise Refused("there is no unfinished cutover")
        reopen(site)
        site.journal.undo(None)
        return report_of(site, "undone")


def _look(settings: Settings, max_lag_bytes: int) -> CutoverReport:
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_session(settings, "source"))
        target = stack.enter_context(_session(settings, "target"))
        found = gates.look(settings, source, target, max_lag_bytes)
    outcome: Outcome = "refused" if found.failed else "passed"
    warnings = tuple(f"{gate.name}: {gate.message}" for gate in found.gates if gate.state == "warn")
    return CutoverReport(outcome, settings.source.slot, gates=found.gates, warnings=warnings)


@contextlib.contextmanager
def _session(settings: Settings, side: Side, purpose: str = "cutover") -> Iterator[Connection]:
    dsn = settings.source.dsn if side == "source" else settings.target.dsn
    conn = connect(dsn, side, purpose=purpose)
    try:
        yield conn
    finally:
        conn.close()


def _open(stack: contextlib.ExitStack, settings: Settings, options: Options, progress: Progress | None) -> Site:
    """All sessions before the first step, so that none has to be opened while writers wait."""
    target = stack.enter_context(_session(settings, "target"))
    with translated("target"):
        if not state.exists(target) or state.load_checkpoint(target, settings.source.slot) is None:
            report = CutoverReport("refused", settings.source.slot)
            raise CutoverRefused("nothing has been replicated yet", report, hint="start `replicator run`")
        lock_cutover(target, settings.source.slot)
        # Whoever blocks us there blocks the source's writers too.
        target.execute("SET lock_timeout = '10s'")
    source = stack.enter_context(_session(settings, "source"))
    freeze_conn = stack.enter_context(_session(settings, "source", "cutover freeze"))
    journal = Journal(target, [lane.source.slot for lane in settings.split()], progress)
    return Site(settings, options, target, source, freeze_conn, journal)


def _go(site: Site, interrupts: Interrupts) -> None:
    step: Step | None = None
    try:
        site.journal.begin()
        while (step := next_step(site.journal.states)) is not None:
            _run_step(site, step, interrupts)
    except finalize.OutcomeUnknown:
        raise
    # Whatever it was, a bug of ours included: the source must not stay closed.
    except BaseException as exc:
        with interrupts.deferred():
            if not is_finalized(site.journal.states):
                give_up(site, step, exc)
                raise
            if not isinstance(exc, ReplicatorError | KeyboardInterrupt):
                raise
            # Too late to go back, so this is a flaw of a success.
            _log.warning("the cutover is finalized, but its end was disturbed", error=str(exc))


def _run_step(site: Site, step: Step, interrupts: Interrupts) -> None:
    if step is Step.FINALIZE:
        site.journal.move(step, State.RUNNING)
        with interrupts.deferred():
            failpoint(f"before_step:{step}")
            finalize.commit(site)
            finalize.close(site)
            failpoint(f"after_step:{step}")
        return
    if step is Step.FREEZE:
        # What must be undone, and that it must be, is on record before it is done.
        site.journal.move(step, State.RUNNING, intent(site), phase="cutting_over")
    else:
        site.journal.move(step, State.RUNNING)
    failpoint(f"before_step:{step}")
    detail = STEPS[step](site)
    failpoint(f"after_step:{step}")
    if step is not Step.CHECK:
        site.require_lock()
    # Once more with the freeze: the service may just have been about to say that it has caught up.
    site.journal.move(step, State.DONE, detail, phase="cutting_over" if step is Step.FREEZE else None)
    _log.info("cutover step done", step=step.value)
