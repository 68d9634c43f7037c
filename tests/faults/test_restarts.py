"""A server is stopped, in either mode, and started again in every phase: the service goes on by itself."""

import pytest

from tests.faults.test_network import SIDES

MODES = ["fast", "immediate"]
# Where the service waits for a while, so that the server is stopped right there. In the order in which they come.
PHASES = {
    "before_part": "rows of the snapshot are sent, not committed",
    "before_index_rebuild": "a table's rows are in, its indexes are not",
    "before_commit": "it catches up",
    "after_batch@9": "a batch is half applied",
}
STEPS = ["check", "freeze", "fence", "drain", "sequences", "indexes", "verify", "finalize"]


def test_a_server_is_stopped_in_every_phase(make_faulty, own_servers, rng):
    """In other modes in each run."""
    stop_in_phases(make_faulty(own_servers, rows=12_000), rng.choice(SIDES), [rng.choice(MODES) for _ in PHASES])


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", SIDES)
def test_a_server_is_stopped_in_every_phase_in_either_mode(make_faulty, own_servers, side, mode):
    stop_in_phases(make_faulty(own_servers, rows=12_000), side, [mode] * len(PHASES))


def stop_in_phases(rig, side, modes):
    rig.ask("source", "ANALYZE")  # how many rows there are decides whether indexes are deferred
    server = getattr(rig, side)
    with rig.writing() as writer:
        rig.service.start(failpoints=",".join(held(place) for place in PHASES))
        for place, mode in zip(PHASES, modes, strict=True):
            rig.wait_for_log(f"failpoint {place.partition('@')[0]}: hold")
            server.restart(mode)
        rig.mark()
    assert writer.error is None
    rig.finish()


def held(place):
    name, at, nth = place.partition("@")
    return f"{name}=hold:1.5{at}{nth}"


def test_a_server_is_stopped_in_a_cutover(make_faulty, own_servers, rng):
    """At other steps in each run."""
    steps = sorted(rng.sample(STEPS[1:], 2), key=STEPS.index)
    stop_in_cutover(make_faulty(own_servers), rng.choice(SIDES), [(step, rng.choice(MODES)) for step in steps])


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", SIDES)
def test_a_server_is_stopped_at_every_step_of_a_cutover(make_faulty, own_servers, side, mode):
    stop_in_cutover(make_faulty(own_servers), side, [(step, mode) for step in STEPS])


def stop_in_cutover(rig, side, cases):
    """It is undone, or done: nothing in between."""
    server = getattr(rig, side)
    with rig.writing() as writer:
        rig.service.start()
        for step, mode in cases:
            if rig.try_to_cut_over(step, lambda mode=mode: server.restart(mode)):
                break
        rig.finish_cut_over()
    assert writer.error is None
