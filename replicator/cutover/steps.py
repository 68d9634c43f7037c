"""The steps up to the point of no return, each a function of the cutover's site; what it returns is recorded."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Final, Literal

from replicator.config import Settings
from replicator.cutover import gates
from replicator.cutover.journal import Journal
from replicator.cutover.report import Detail, Gate
from replicator.cutover.transitions import Step
from replicator.errors import ConfigError, Refused, TransientError, VerificationFailed
from replicator.model.lsn import ZERO, Lsn
from replicator.model.schema import show_table
from replicator.postgres.connection import Connection, translated
from replicator.routes import refuse_faults
from replicator.source.freeze import Freeze, cancel_exclusive_waiters, load_read_only, store_read_only
from replicator.source.messages import emit_fence
from replicator.source.slot import require_slot
from replicator.survey import newcomer_message, refuse_drift, survey_lanes
from replicator.target import indexes, quarantine, sequences
from replicator.target.state import load_checkpoint, writer_is_running
from replicator.verify import Report, verify

Verification = Literal["full", "counts", "none"]

_POLL_S: Final = 0.02
_LOCK_CHECK_S: Final = 0.5
_SETTLE_S: Final = 60.0  # for the stream to catch up again after indexes were built


@dataclass(frozen=True, slots=True)
class Options:
    """``timeout_s`` bounds the time from the freeze to the point of no return."""

    max_lag_bytes: int
    timeout_s: float
    verify: Verification


class GatesFailed(Refused):
    """A gate does not hold."""

    def __init__(self, findings: gates.Findings) -> None:
        """One line per gate that failed."""
        lines = [f"{gate.name}: {gate.message}" + (f" — {gate.remedy}" if gate.remedy else "")
                 for gate in findings.failed]  # fmt: skip
        super().__init__("\n".join(lines), hint="`replicator cutover --dry-run` looks at all gates again")
        self.gates = findings.gates


@dataclass(slots=True)
class Site:
    """The sessions of one cutover, and what its steps have found out so far."""

    settings: Settings
    options: Options
    target: Connection
    source: Connection
    freeze_conn: Connection
    journal: Journal
    subject: gates.Subject | None = None  # from `check` on
    freeze: Freeze | None = None
    deadline: float = 0.0  # monotonic
    blocked_since: float = 0.0  # monotonic
    read_only: bool = False
    fence: str = ""
    fence_lsn: Lsn = ZERO

    @property
    def lanes(self) -> tuple[Settings, ...]:
        """The settings of every lane; these alone where there is one."""
        return self.settings.split()

    @property
    def slot(self) -> str:
        """The first lane's slot: the key of the recorded steps."""
        return self.settings.source.slot

    @property
    def checked(self) -> gates.Subject:
        """Routes and sequences, as the gates found them."""
        assert self.subject is not None, "check comes first"
        return self.subject

    def require_lock(self) -> Freeze:
        """The freeze.

        Raises:
            TransientError: its session broke; writers are back.
        """
        if self.freeze is None or not self.freeze.is_held():
            raise TransientError("source: the lock on its tables was lost: the session that held it is gone")
        return self.freeze

    def require_time(self) -> None:
        """Raise Refused once the time for keeping writers waiting is over."""
        if time.monotonic() > self.deadline:
            raise Refused(
                f"not done within {self.options.timeout_s:g} s",
                hint="raise --timeout, or choose a shorter check with --verify counts",
            )


def check(site: Site) -> Detail:
    """Pass all gates; rebuild deferred indexes now, for later it would cost downtime."""
    found = _pass_gates(site)
    with translated("target"):
        rebuilt = indexes.rebuild_missing(site.target)
    if rebuilt:
        # Building locked the tables against the stream: let it catch up.
        found = _settle(site)
    site.subject = found.subject
    return {"gates": [gate.to_json() for gate in found.gates], "indexes_rebuilt": [str(index) for index in rebuilt],
            "warnings": [_warning(gate) for gate in found.gates if gate.state == "warn"]}  # fmt: skip


def _pass_gates(site: Site) -> gates.Findings:
    found = gates.look(site.settings, site.source, site.target, site.options.max_lag_bytes)
    if found.failed:
        raise GatesFailed(found)
    return found


def _settle(site: Site) -> gates.Findings:
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(GatesFailed):
            return _pass_gates(site)
        time.sleep(0.2)
    return _pass_gates(site)


def _warning(gate: Gate) -> str:
    return f"{gate.name}: {gate.message}"


def intent(site: Site) -> Detail:
    """What `freeze` records before it begins: the database setting to restore, whatever happens to us then."""
    known = site.journal.records[Step.FREEZE].detail
    if "previous_read_only" in known:  # what a broken attempt found: by now it would be our own
        return {"previous_read_only": known["previous_read_only"]}
    with translated("source"):
        return {"previous_read_only": load_read_only(site.source)}


def freeze(site: Site) -> Detail:
    """Lock the source's tables, then set the database read-only for new sessions.

    In this order, so that a lock that cannot be had costs no application an error.
    """
    site.deadline = time.monotonic() + site.options.timeout_s
    site.freeze = Freeze(site.freeze_conn, site.checked.source_tables)
    site.blocked_since = site.freeze.acquire(site.deadline)
    warnings = []
    try:
        store_read_only(site.source, "on")
        site.read_only = True
    except ConfigError as exc:
        warnings.append(f"the source database could not be set read-only: {exc.message}")
    return {"attempts": site.freeze.attempts, "read_only": site.read_only, "warnings": warnings}


def fence(site: Site) -> Detail:
    """Write the fence behind the last change."""
    site.fence = secrets.token_hex(16)
    with translated("source"):
        site.fence_lsn = emit_fence(site.source, site.fence)
    return {"lsn": str(site.fence_lsn)}


def drain(site: Site) -> Detail:
    """Wait until the target has committed, in every lane, the batch that holds the fence."""
    next_lock_check = time.monotonic() + _LOCK_CHECK_S
    while True:
        with translated("target"):
            checkpoints = [load_checkpoint(site.target, lane.source.slot) for lane in site.lanes]
        known = [checkpoint for checkpoint in checkpoints if checkpoint is not None]
        behind = [lane for lane, checkpoint in zip(site.lanes, checkpoints, strict=True)
                  if checkpoint is None or checkpoint.fence != site.fence]  # fmt: skip
        if not behind:
            _require_empty_quarantine(site)
            _refuse_late_drift(site)
            return {"applied_lsn": str(min(checkpoint.applied_lsn for checkpoint in known))}
        now = time.monotonic()
        if now > site.deadline:
            raise _not_drained(site, behind)
        if now > next_lock_check:
            site.require_lock()
            # The service may come back; a slot that is lost does not. Writers need not wait for the time limit.
            for checkpoint in known:
                require_slot(site.source, checkpoint.slot, checkpoint.database, None)
            next_lock_check = now + _LOCK_CHECK_S
        time.sleep(_POLL_S)


def _require_empty_quarantine(site: Site) -> None:
    """The gate found it empty; what came since may have filled it."""
    with translated("target"):
        count = sum(quarantine.count(site.target, lane.source.slot) for lane in site.lanes)
    if count:
        raise Refused(
            f"{count} changes that the target refused are in quarantine since the gates were passed",
            hint="see `replicator quarantine list`",
        )


def _refuse_late_drift(site: Site) -> None:
    """A table that was made or altered between the gates and the freeze: now nobody alters one any more."""
    found = survey_lanes(site.settings, site.source, site.target)
    refuse_drift(found)
    refuse_faults(found.faults)
    for name in found.newcomers:
        message, remedy = newcomer_message(name)
        raise Refused(message, hint=remedy)


def _not_drained(site: Site, behind: Sequence[Settings]) -> Refused:
    text = f"{behind[0].prefix}the stream did not deliver the fence within {site.options.timeout_s:g} s"
    with translated("target"):
        stopped = [lane for lane in behind if not writer_is_running(site.target, lane.source.slot)]
    if stopped:
        hint = f"start `{stopped[0].run_command}`, then try again"
        return Refused(f"{text}: {stopped[0].prefix}the service is not running", hint=hint)
    return Refused(text, hint="see the service's log; raise --timeout if it is only slow")


def set_sequences(site: Site) -> Detail:
    """Let the target's sequences continue the source's."""
    pairs = site.checked.sequences.pairs
    with translated("source"):
        values = sequences.load_values(site.source, pairs)
    with translated("target"):
        done = sequences.set_sequences(site.target, pairs, values)
    return {"set": {show_table(name): {"last_value": value.last_value, "is_called": value.is_called}
                    for name, value in done.items()}}  # fmt: skip


def rebuild_indexes(site: Site) -> Detail:
    """Rebuild what became missing since `check`: as a rule nothing."""
    with translated("target"):
        return {"rebuilt": [str(index) for index in indexes.rebuild_missing(site.target)]}


def compare(site: Site) -> Detail:
    """Compare both sides, which stand still now.

    In a thread of its own, so that a lost lock, the time limit or a signal ends the waiting at once; the comparison
    only reads, and what it finds after that is of no interest.
    """
    mode = site.options.verify
    if mode == "none":
        return {"mode": mode}
    future: Future[Report] = Future()
    stop = threading.Event()
    threading.Thread(target=_compare, args=(site, future, stop), name="cutover-verify", daemon=True).start()
    cancelled = 0
    try:
        while not wait([future], timeout=_LOCK_CHECK_S).done:
            cancelled += cancel_exclusive_waiters(site.source, site.require_lock().pid)
            site.require_time()
    finally:
        stop.set()
    report = future.result()
    if not report.equal:
        raise VerificationFailed(report.summary(), hint="`replicator verify` shows the keys that differ")
    warnings = [
        f"{cancelled} statements of the source (TRUNCATE, DDL) were cancelled: they kept the comparison waiting"
    ]
    return {"mode": mode, "report": report.to_json(), "warnings": warnings if cancelled else []}


def _compare(site: Site, future: Future[Report], stop: threading.Event) -> None:
    counts_only = site.options.verify == "counts"
    try:
        report = verify(site.settings, site.checked.routes, counts_only=counts_only, live=False, stop=stop)
        future.set_result(report)
    except BaseException as exc:
        future.set_exception(exc)


STEPS: Final[Mapping[Step, Callable[[Site], Detail]]] = {
    Step.CHECK: check,
    Step.FREEZE: freeze,
    Step.FENCE: fence,
    Step.DRAIN: drain,
    Step.SEQUENCES: set_sequences,
    Step.INDEXES: rebuild_indexes,
    Step.VERIFY: compare,
}
