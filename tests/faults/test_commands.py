"""Lines of a command that die under it: it comes to an end, nobody stays shut out, and the next one works."""

import json
import time

import pytest

from tests.faults.rig import SILENCE_S
from tests.faults.test_network import SIDES

VERIFY, CUTOVER = "replicator verify", "replicator cutover"
ENDS_WITHIN_S = 90


def server_side_gone(proxy, only):
    assert proxy.half_open("server", only=only)


def our_side_gone(proxy, only):
    """The server's end stays open, with its locks."""
    assert proxy.half_open("client", only=only)


def both_sides_silent(proxy, only):
    assert proxy.silence(only)


def stall(proxy, only):
    """For longer than a silence is borne, and for new connections too."""
    proxy.stall(only=only)
    time.sleep(3 * SILENCE_S)
    proxy.resume()


FAULTS = [server_side_gone, our_side_gone, both_sides_silent, stall]
STEPS = ["freeze", "fence", "drain", "sequences", "verify", "finalize"]


def test_verify_behind_a_line_that_dies_ends_and_holds_up_nobody(make_faulty, rng):
    """Other ones in each run."""
    verify(make_faulty(rows=20_000), rng.choice(SIDES), rng.sample(FAULTS, 2))


@pytest.mark.soak
@pytest.mark.parametrize("side", SIDES)
def test_verify_ends_and_holds_up_nobody_whatever_line_dies(make_faulty, side):
    verify(make_faulty(rows=20_000), side, FAULTS)


def verify(rig, side, faults):
    proxy = rig.proxies[side]
    codes = []
    with rig.writing() as writer:
        rig.service.start()
        rig.mark()
        for fault in faults:
            process = rig.popen("verify", "--json")
            try:
                rig.wait_until(
                    lambda: any(link.passed["to_client"] > 3_000 for link in proxy.links(VERIFY)),
                    "verify does not begin",
                )
                fault(proxy, VERIFY)
                out, err = process.communicate(timeout=ENDS_WITHIN_S)
            finally:
                process.kill()
            codes.append(process.returncode)
            assert process.returncode in (0, 3), f"{fault.__name__}: {process.returncode}\n{out}\n{err}"
            assert not out or json.loads(out)["equal"]
            rig.mark()
        assert json.loads(rig.run("verify", "--json"))["equal"]
    assert writer.error is None
    assert 3 in codes, f"it was over before the lines died: {codes}"
    rig.finish()


def test_a_cutover_behind_lines_that_die_is_undone_or_done(make_faulty, rng):
    """Other ones in each run."""
    cut_over(make_faulty(), rng.choice(SIDES), [(rng.choice(STEPS), rng.choice(FAULTS))])


def test_an_undo_is_recorded_though_the_target_still_has_the_session_that_is_lost_to_us(make_faulty):
    """Its end holds the lock that lets only one cutover run: the next one would be refused for hours."""
    rig = make_faulty()
    with rig.writing() as writer:
        rig.service.start()
        assert not rig.try_to_cut_over("fence", lambda: our_side_gone(rig.proxies["target"], CUTOVER))
        assert rig.ask("target", "SELECT state FROM replicator.cutover_step WHERE step = 'fence'") == [("failed",)]
        rig.finish_cut_over()
    assert writer.error is None


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("side", SIDES)
def test_a_cutover_is_undone_or_done_whatever_line_dies_at_any_step(make_faulty, side, fault):
    cut_over(make_faulty(), side, [(step, fault) for step in STEPS])


def cut_over(rig, side, cases):
    proxy = rig.proxies[side]
    with rig.writing() as writer:
        rig.service.start()
        for step, fault in cases:
            if rig.try_to_cut_over(step, lambda fault=fault: fault(proxy, CUTOVER)):
                break
        rig.finish_cut_over()
    assert writer.error is None
