"""Give a cutover up: the source is reopened first, then that is recorded."""

from __future__ import annotations

import time
from typing import Final

import psycopg

from replicator.cutover.journal import connect_target
from replicator.cutover.report import CutoverRefused, CutoverReport, Detail, Outcome, build_report
from replicator.cutover.steps import GatesFailed, Site
from replicator.cutover.transitions import State, Step
from replicator.errors import Refused, ReplicatorError, TransientError
from replicator.logs import get_logger
from replicator.postgres.connection import connect, translate
from replicator.source.freeze import store_read_only

_log = get_logger(__name__)

_PATIENCE_S: Final = 15.0  # for a server that is just restarting


def give_up(site: Site, step: Step | None, exc: BaseException) -> None:
    """Undo what was begun because of ``exc`` at ``step``; returns if ``exc`` is no error that people can act on.

    Raises:
        CutoverRefused: for all other errors; the source takes writes.
        TransientError: the source could not be reopened.
    """
    error = _explain(exc)
    message = error.message if error is not None else type(exc).__name__
    _log.warning("cutover is being undone", step=step.value if step else None, error=message)
    begun = site.journal.resumed or site.journal.states[Step.FREEZE] is not State.PENDING
    detail: Detail = {"error": message}
    if isinstance(exc, GatesFailed):
        detail["gates"] = [gate.to_json() for gate in exc.gates]
    if begun:
        reopen(site)
    recorded = _record(site, step, detail)
    if error is None:
        return
    text = message
    if begun:
        text = f"cutover undone at step {step}: {message}\nthe source takes writes again"
    if not recorded:
        text += "\nthe target could not record that; `replicator cutover abort` makes up for it"
    raise CutoverRefused(text, report_of(site, "undone" if begun else "refused"), hint=error.hint) from exc


def _explain(exc: BaseException) -> ReplicatorError | None:
    match exc:
        case ReplicatorError():
            return exc
        case KeyboardInterrupt():
            return Refused("interrupted")
        case psycopg.Error():
            return translate(exc, "source")
        case _:
            return None


def reopen(site: Site) -> None:
    """Restore the database setting, then release the lock.

    Raises:
        TransientError: the setting could not be restored; the lock is released all the same.
    """
    previous = site.journal.records[Step.FREEZE].detail.get("previous_read_only")
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while not _restore(site, previous, last_try=time.monotonic() > deadline):
            time.sleep(0.25)
    except ReplicatorError as exc:
        raise TransientError(
            f"the source could not be reopened: its database stays read-only for new sessions: {exc.message}",
            hint="`replicator cutover abort` tries again",
        ) from exc
    finally:
        if site.freeze is not None:
            site.freeze.release()


def _restore(site: Site, previous: str | None, *, last_try: bool) -> bool:
    try:
        conn = connect(site.settings.source.dsn, "source", purpose="cutover reopen")
        try:
            store_read_only(conn, previous)
        finally:
            conn.close()
    except TransientError:
        if last_try:
            raise
        return False
    return True


def _record(site: Site, step: Step | None, detail: Detail) -> bool:
    """Whether the undo is on record. Should the target be gone, the source is open all the same."""
    journal = site.journal
    failed = step if step is not None and journal.states[step] is State.RUNNING else None
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            if journal.conn.closed or journal.conn.broken:
                journal.conn = connect_target(site.settings, journal.conn)
            journal.undo(failed, detail)
        except (ReplicatorError, psycopg.Error) as exc:
            if time.monotonic() > deadline:
                _log.warning("the undo could not be recorded", error=type(exc).__name__)
                return False
            journal.conn.close()
            time.sleep(0.25)
        else:
            return True


def report_of(site: Site, outcome: Outcome) -> CutoverReport:
    """The report of this cutover as it stands."""
    sources = [(lane.source.slot, lane.source.publication) for lane in site.lanes]
    return build_report(outcome, sources, site.journal.records.values())
