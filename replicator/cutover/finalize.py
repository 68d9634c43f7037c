"""The point of no return, and what follows it: late sessions ended, the lock released, a last look for late writes.

What is guaranteed. Until the end of `commit` nobody can write to the replicated tables of the source: the lock is
held, and was held since before the fence. Sessions that wait for it are ended before that commit and once more before
the lock is released, so their statements die with them. New sessions are read-only by the database's setting. What
remains are sessions that switch it off themselves, those of a superuser that we may not end, and all of them where the
setting could not be made: should one of these write, `writes_after_fence` of the report says so.
"""

from __future__ import annotations

import time
from typing import Final

from psycopg import sql

from replicator.config import Settings
from replicator.cutover.journal import connect_target
from replicator.cutover.report import Detail
from replicator.cutover.steps import Site
from replicator.cutover.transitions import State, Step
from replicator.errors import ReplicatorError, StateError, TransientError
from replicator.failpoints import failpoint
from replicator.model.lsn import Lsn
from replicator.postgres.connection import Connection, query, translated
from replicator.source.freeze import Terminated, terminate_others
from replicator.source.slot import load_slot

_RECONNECT_S: Final = 60.0
_SERVICE_STOPS_S: Final = 15.0
_LOOKED_AT: Final = 10_000  # changes; one is as bad as many
_NO_PROCESS: Final = -1


class OutcomeUnknown(StateError):
    """The target was lost while it committed: whether the cutover is finalized cannot be told now."""


def commit(site: Site) -> None:
    """Hand over: phase ``cut_over`` and the step's end in one transaction of the target.

    Raises:
        OutcomeUnknown: the target was lost at that moment and did not come back.
        TransientError: the lock was lost, or the commit did not happen; nothing is handed over.
    """
    frozen = site.require_lock()
    site.require_time()
    sessions = terminate_others(site.source, frozen.pid)
    site.require_lock()
    detail: Detail = {
        "write_downtime_seconds": round(time.monotonic() - site.blocked_since, 3),
        "fence_lsn": str(site.fence_lsn),
        "sessions": {"ended": sessions.ended, "left": sessions.left},
    }
    try:
        with translated("target"):
            failpoint("before_hand_over", site.journal.conn)
            site.journal.move(Step.FINALIZE, State.DONE, detail, phase="cut_over")
            failpoint("after_hand_over", site.journal.conn)
    except TransientError as exc:
        # An error that the server answered is a rollback; only a lost answer leaves it open.
        lost = site.journal.conn.closed or site.journal.conn.broken
        if not lost or not _committed_after_all(site):
            raise
        site.journal.reload()
        if site.journal.states[Step.FINALIZE] is not State.DONE:
            raise StateError("the target's record of the cutover was changed by somebody else") from exc


def _committed_after_all(site: Site) -> bool:
    deadline = time.monotonic() + _RECONNECT_S
    while time.monotonic() < deadline:
        try:
            site.target = site.journal.conn = connect_target(site.settings, site.journal.conn)
            with translated("target"):
                # The row lock waits for a commit that is still under way in the session that we lost.
                [(state,)] = query(
                    site.target,
                    "SELECT state FROM replicator.cutover_step WHERE slot = %s AND step = 'finalize' FOR UPDATE",
                    site.slot,
                )
        except ReplicatorError:
            site.target.close()
            time.sleep(0.5)
        else:
            return str(state) == State.DONE.value
    raise OutcomeUnknown(
        "the target was lost in the very moment of handing over and did not come back; the source stays read-only",
        hint="bring the target up and run `replicator cutover` again: it finishes what was begun. "
        "Let nobody write to either side before",
    )


def close(site: Site) -> None:
    """After `commit`: end the sessions that came since, release the lock, and see whether anybody wrote after all.

    The lock is kept until the service has stopped: what somebody writes after it must not reach a target in use.
    """
    frozen = site.freeze
    assert frozen is not None
    warnings = []
    try:
        for lane in site.lanes:
            _wait_for_service(site.source, lane.source.slot)
        late = terminate_others(site.source, frozen.pid)
        held = frozen.is_held()
    except ReplicatorError as exc:
        late, held = Terminated(0, 0), False
        warnings.append(f"the source's sessions could not be ended: {exc.message}")
    finally:
        frozen.release()
    if not held:
        warnings.append("the lock on the source's tables was lost after the cutover was finalized")
    _record_end(site, late, warnings)


def close_again(site: Site) -> None:
    """Make up for a `close` that did not happen, since the cutover died after `commit`."""
    known = site.journal.records[Step.FINALIZE].detail
    if known.get("closed"):
        return
    site.fence_lsn = Lsn.parse(str(known["fence_lsn"]))
    late = terminate_others(site.source, _NO_PROCESS)
    warning = "the cutover died after handing over: from then on the lock did not hold back writers of the source"
    _record_end(site, late, [warning])


def _record_end(site: Site, late: Terminated, warnings: list[str]) -> None:
    before = site.journal.records[Step.FINALIZE].detail["sessions"]
    writes, reason = None, "the slot is in use"
    try:
        counts = [count_writes_after(site.source, lane, site.fence_lsn) for lane in site.lanes]
        writes = None if None in counts else sum(count or 0 for count in counts)
    except ReplicatorError as exc:
        reason = exc.message
    if writes is None:
        warnings.append(f"whether anybody wrote to the source after the fence could not be checked: {reason}")
    elif writes:
        warnings.append(f"{writes} changes were written to the source after the fence and are NOT on the target")
    if late.left:
        warnings.append(f"{late.left} sessions of the source could not be ended and may try to write")
    site.journal.add(
        Step.FINALIZE,
        {
            "sessions": {"ended": before["ended"] + late.ended, "left": late.left},
            "writes_after_fence": writes,
            "warnings": warnings,
            "closed": True,
        },
    )


def count_writes_after(conn: Connection, settings: Settings, fence: Lsn) -> int | None:
    """Row changes of one lane's tables behind ``fence`` that the slot holds; None while the service reads from it.

    The fence was written while all writers were shut out, so whatever lies behind it came after the freeze.
    """
    slot, publication = settings.source.slot, settings.source.publication
    if not _wait_for_service(conn, slot):
        return None
    with translated("source"):
        # The first byte of a pgoutput message is its kind.
        [(count,)] = query(
            conn,
            """
            SELECT count(*) FROM pg_catalog.pg_logical_slot_peek_binary_changes(
                %s, NULL, %s, 'proto_version', '1', 'publication_names', %s)
            WHERE lsn > %s::pg_lsn
              AND pg_catalog.chr(pg_catalog.get_byte(data, 0)) IN ('I', 'U', 'D', 'T')
            """,
            slot,
            _LOOKED_AT,
            sql.Identifier(publication).as_string(conn),
            str(fence),
        )
    return int(count)


def _wait_for_service(conn: Connection, slot: str) -> bool:
    """Whether the slot is there and nobody reads from it any more; the service stops within a second or two."""
    deadline = time.monotonic() + _SERVICE_STOPS_S
    with translated("source"):
        while (found := load_slot(conn, slot)) is not None and found.active:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return found is not None
