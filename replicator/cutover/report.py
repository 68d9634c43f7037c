"""What a cutover found, did and left behind: its gates, its steps, its report."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from replicator.cutover.transitions import State, Step
from replicator.errors import Refused

Detail = dict[str, Any]  # what a step records: a JSON object, no row values
Outcome = Literal["passed", "refused", "undone", "finalized"]


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition, looked at before anything is frozen."""

    name: str
    state: Literal["pass", "warn", "fail"]
    message: str
    remedy: str = ""

    def to_json(self) -> Detail:
        """The gate as a JSON object."""
        return {"name": self.name, "state": self.state, "message": self.message, "remedy": self.remedy}


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One row of ``replicator.cutover_step``; times are the target server's."""

    step: Step
    state: State
    started_at: dt.datetime | None = None
    finished_at: dt.datetime | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> Detail:
        """The step as a JSON object; times in ISO 8601, seconds as a number."""
        seconds = None
        if self.started_at is not None and self.finished_at is not None:
            seconds = round((self.finished_at - self.started_at).total_seconds(), 6)
        return {
            "name": self.step.value,
            "state": self.state.value,
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "finished_at": self.finished_at.isoformat() if self.finished_at else None,
            "seconds": seconds,
            "detail": dict(self.detail),
        }


@dataclass(frozen=True, slots=True)
class CutoverReport:
    """The whole story; ``passed`` is the outcome of a dry run whose gates all hold."""

    outcome: Outcome
    slot: str
    gates: tuple[Gate, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    write_downtime_seconds: float | None = None  # from the freeze of the source until the target took writes
    final_lsn: str | None = None  # everything up to here is on the target
    verification: Mapping[str, Any] | None = None
    sequences: Mapping[str, Any] = field(default_factory=dict)
    sessions: Mapping[str, int] | None = None
    writes_after_fence: int | None = None  # None: could not be looked at
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def finalized(self) -> bool:
        """Whether the target has taken over."""
        return self.outcome == "finalized"

    @property
    def ok(self) -> bool:
        """Whether the command's answer is yes: finalized, or a dry run that passed."""
        return self.outcome in ("finalized", "passed")

    def to_json(self) -> Detail:
        """The report as a JSON object."""
        return {
            "outcome": self.outcome,
            "finalized": self.finalized,
            "slot": self.slot,
            "gates": [gate.to_json() for gate in self.gates],
            "steps": [step.to_json() for step in self.steps],
            "write_downtime_seconds": self.write_downtime_seconds,
            "final_lsn": self.final_lsn,
            "verification": dict(self.verification) if self.verification is not None else None,
            "sequences": dict(self.sequences),
            "sessions": dict(self.sessions) if self.sessions is not None else None,
            "writes_after_fence": self.writes_after_fence,
            "removed": list(self.removed),
            "kept": list(self.kept),
            "warnings": list(self.warnings),
        }


class CutoverRefused(Refused):
    """A gate failed, or the cutover was undone: the source takes writes. ``report`` tells how far it came."""

    def __init__(self, message: str, report: CutoverReport, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.report = report


def build_report(outcome: Outcome, sources: Sequence[tuple[str, str]], records: Iterable[StepRecord]) -> CutoverReport:
    """The report of a cutover from its recorded steps. ``sources``: slot and publication of every lane."""
    steps = tuple(records)
    detail = {record.step: record.detail for record in steps}
    closing = detail.get(Step.FINALIZE, {})
    frozen = detail.get(Step.FREEZE, {})
    finalized = outcome == "finalized"
    return CutoverReport(
        outcome=outcome,
        slot=sources[0][0],
        gates=tuple(Gate(**gate) for gate in detail.get(Step.CHECK, {}).get("gates", ())),
        steps=steps,
        write_downtime_seconds=closing.get("write_downtime_seconds") if finalized else None,
        final_lsn=detail.get(Step.DRAIN, {}).get("applied_lsn"),
        verification=detail.get(Step.VERIFY, {}).get("report"),
        sequences=detail.get(Step.SEQUENCES, {}).get("set", {}),
        sessions=closing.get("sessions"),
        writes_after_fence=closing.get("writes_after_fence"),
        removed=_removed(closing) if finalized else (),
        kept=_kept(sources, frozen) if finalized else (),
        warnings=tuple(warning for record in steps for warning in record.detail.get("warnings", ())),
    )


def _removed(closing: Mapping[str, Any]) -> tuple[str, ...]:
    ended = closing.get("sessions", {}).get("ended", 0)
    return (f"{ended} client session(s) of the source",) if ended else ()


def _kept(sources: Sequence[tuple[str, str]], frozen: Mapping[str, Any]) -> tuple[str, ...]:
    kept = (
        *(
            f"replication slot {slot} on the source, until `replicator teardown`: it keeps WAL as long as it exists"
            for slot, _ in sources
        ),
        *(f"publication {publication} on the source, until `replicator teardown`" for _, publication in sources),
        "schema replicator on the target, until `replicator teardown`",
    )
    if not frozen.get("read_only"):
        return kept
    return (*kept, "the source's database setting default_transaction_read_only = on: remove it by hand to go back")
