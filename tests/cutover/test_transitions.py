"""The state machine without a server: what is legal, what an undo leaves, what a resume repeats."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.cutover.transitions import (
    FRESH,
    ORDER,
    State,
    States,
    Step,
    begin,
    is_finalized,
    move,
    next_step,
    undo,
)
from replicator.errors import StateError


def run_until(step: Step | None) -> States:
    """All steps before `step` done, `step` itself running; None: all done."""
    states = FRESH
    for each in ORDER:
        states = move(states, each, State.RUNNING)
        if each is step:
            return states
        states = move(states, each, State.DONE)
    return states


def test_steps_run_in_their_order():
    states, seen = FRESH, []
    while (step := next_step(states)) is not None:
        seen.append(step.value)
        states = move(move(states, step, State.RUNNING), step, State.DONE)
    assert seen == ["check", "freeze", "fence", "drain", "sequences", "indexes", "verify", "finalize"]
    assert is_finalized(states)


@pytest.mark.parametrize("later", [step for step in ORDER if step is not Step.CHECK])
def test_no_step_starts_before_its_predecessors_are_done(later):
    with pytest.raises(StateError, match=f"{later} cannot be running"):
        move(FRESH, later, State.RUNNING)


LEGAL_MOVES = {
    ("pending", "running"),
    *(("running", to) for to in ("done", "failed", "undone", "pending")),
    *(("done", to) for to in ("undone", "pending")),
    ("failed", "pending"),
    ("undone", "pending"),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_illegal_moves_raise(old, new):
    """Written out once more, so that a change of the table is noticed."""
    states = {**FRESH, Step.CHECK: old}
    if (old.value, new.value) in LEGAL_MOVES:
        assert move(states, Step.CHECK, new)[Step.CHECK] is new
    else:
        with pytest.raises(StateError, match="cannot go from"):
            move(states, Step.CHECK, new)


@pytest.mark.parametrize("failed", ORDER)
def test_a_failing_step_undoes_those_before_it(failed):
    result = undo(run_until(failed), failed, resumed=False)
    at = ORDER.index(failed)
    assert [result.states[step].value for step in ORDER] == [
        *["undone"] * at,
        "failed",
        *["pending"] * (len(ORDER) - at - 1),
    ]
    # Before the freeze there is nothing to open again.
    assert result.reopen is (failed is not Step.CHECK)


@pytest.mark.parametrize("running", ORDER)
def test_abort_undoes_whatever_had_begun(running):
    result = undo(run_until(running), None, resumed=True)
    assert result.reopen
    assert {state.value for state in result.states.values()} <= {"undone", "pending"}
    assert result.states[running] is State.UNDONE


def test_a_gate_that_fails_in_a_resumed_attempt_reopens_the_source():
    """The states of the broken attempt are gone by then; the database is still read-only."""
    states = move(begin(run_until(Step.DRAIN), resumed=True), Step.CHECK, State.RUNNING)
    assert undo(states, Step.CHECK, resumed=True).reopen


def test_after_finalize_there_is_no_way_back():
    states = run_until(None)
    with pytest.raises(StateError, match="no way back"):
        undo(states, None, resumed=False)
    with pytest.raises(StateError, match="finalized"):
        begin(states, resumed=False)
    for step, to in itertools.product(ORDER, State):
        with pytest.raises(StateError, match="finalized"):
            move(states, step, to)


@pytest.mark.parametrize("broken_at", [step for step in ORDER if step is not Step.CHECK])
def test_a_resume_repeats_all_that_rests_on_the_lock(broken_at):
    """The lock was let go when the process died: writers may have been there since."""
    states = begin(run_until(broken_at), resumed=True)
    kept = {step for step, state in states.items() if state is State.DONE}
    assert kept == ({Step.INDEXES} if ORDER.index(broken_at) > ORDER.index(Step.INDEXES) else set())
    assert all(states[step] is State.PENDING for step in ORDER if step not in kept)


def test_a_new_attempt_after_an_undo_starts_afresh():
    undone = undo(run_until(Step.VERIFY), Step.VERIFY, resumed=False).states
    with pytest.raises(StateError, match="is undone"):
        next_step(undone)
    assert begin(undone, resumed=False) == FRESH


@given(st.lists(st.sampled_from(["go on", "fail", "crash", "abort"]), max_size=60))
def test_any_history_ends_open_or_finalized(events):
    """Whatever happens in whatever order: finalized only through all steps, else one undo opens the source."""
    states, resumed = FRESH, False
    for event in events:
        if is_finalized(states):
            assert all(state is State.DONE for state in states.values())
            return
        if any(state in (State.FAILED, State.UNDONE) for state in states.values()):
            states = begin(states, resumed=resumed)
        step = next_step(states)
        assert step is not None
        running = states if states[step] is State.RUNNING else move(states, step, State.RUNNING)
        resumed = resumed or step is not Step.CHECK
        if event == "go on":
            states = move(running, step, State.DONE)
        elif event == "crash":
            states = begin(running, resumed=resumed)
            assert states[Step.FREEZE] is State.PENDING
        else:
            result = undo(running, step if event == "fail" else None, resumed=resumed)
            assert result.reopen is resumed
            states, resumed = result.states, False
