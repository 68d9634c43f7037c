"""The cutover as a state machine: its steps, their legal transitions, what an undo and a resume mean. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from replicator.errors import StateError


class Step(StrEnum):
    """The steps, in their order."""

    CHECK = "check"
    FREEZE = "freeze"
    FENCE = "fence"
    DRAIN = "drain"
    SEQUENCES = "sequences"
    INDEXES = "indexes"
    VERIFY = "verify"
    FINALIZE = "finalize"


class State(StrEnum):
    """The states of a step."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    UNDONE = "undone"


States = Mapping[Step, State]

ORDER: Final = tuple(Step)
FRESH: Final[States] = dict.fromkeys(ORDER, State.PENDING)

# X → PENDING begins a new attempt; `move` refuses it, and all else, for a cutover that is finalized.
LEGAL: Final[Mapping[State, frozenset[State]]] = {
    State.PENDING: frozenset({State.RUNNING}),
    State.RUNNING: frozenset({State.DONE, State.FAILED, State.UNDONE, State.PENDING}),
    State.DONE: frozenset({State.UNDONE, State.PENDING}),
    State.FAILED: frozenset({State.PENDING}),
    State.UNDONE: frozenset({State.PENDING}),
}

# From here on the source may be closed to writers, so giving up means to reopen it.
_CLOSES_SOURCE: Final = frozenset(ORDER[ORDER.index(Step.FREEZE) :])

# The lock of the freeze lives in the session of a process, and writers return when that is gone: all that was found
# out about the source since then is out of date. An index that was built stays built.
_OUTLIVES_PROCESS: Final = frozenset({Step.INDEXES})


@dataclass(frozen=True, slots=True)
class Undo:
    """How to give up: the states to record, and whether the source must be reopened."""

    states: States
    reopen: bool


def is_finalized(states: States) -> bool:
    """Whether the point of no return lies behind."""
    return states[Step.FINALIZE] is State.DONE


def move(states: States, step: Step, to: State) -> States:
    """``states`` with ``step`` moved to another state.

    Raises:
        StateError: that transition is not legal, or an earlier step is not done yet.
    """
    if is_finalized(states):
        raise StateError(f"the cutover is finalized: step {step} can no longer become {to}")
    if to not in LEGAL[states[step]]:
        raise StateError(f"cutover step {step} cannot go from {states[step]} to {to}")
    if to in (State.RUNNING, State.DONE):
        for earlier in ORDER[: ORDER.index(step)]:
            if states[earlier] is not State.DONE:
                raise StateError(f"cutover step {step} cannot be {to} while {earlier} is {states[earlier]}")
    return {**states, step: to}


def begin(states: States, *, resumed: bool) -> States:
    """The states at the start of an attempt: steps that stay done are skipped.

    Args:
        states: what an earlier attempt left.
        resumed: that attempt had begun to close the source and was neither finalized nor undone.

    Raises:
        StateError: the cutover is finalized.
    """
    if is_finalized(states):
        raise StateError("the cutover is finalized")
    if not resumed:
        return FRESH
    keeps = {step for step in _OUTLIVES_PROCESS if states[step] is State.DONE}
    return {step: State.DONE if step in keeps else State.PENDING for step in ORDER}


def next_step(states: States) -> Step | None:
    """The step to run now; None when all are done.

    Raises:
        StateError: an attempt failed or was undone; `begin` a new one.
    """
    for step in ORDER:
        match states[step]:
            case State.DONE:
                continue
            case State.PENDING | State.RUNNING:
                return step
            case stopped:
                raise StateError(f"cutover step {step} is {stopped}")
    return None


def undo(states: States, failed: Step | None, *, resumed: bool) -> Undo:
    """Give up an attempt.

    Args:
        states: as they stand.
        failed: the step that failed; None when an operator gives up (``abort``).
        resumed: an earlier attempt, of which ``states`` no longer tell, had begun to close the source.

    Raises:
        StateError: the cutover is finalized: there is no way back.
    """
    if is_finalized(states):
        raise StateError("the cutover is finalized: there is no way back")
    reopen = resumed or any(states[step] is not State.PENDING for step in _CLOSES_SOURCE)
    for step in ORDER:
        if step is failed:
            states = move(states, step, State.FAILED)
        elif states[step] in (State.DONE, State.RUNNING):
            states = move(states, step, State.UNDONE)
    return Undo(states, reopen)
