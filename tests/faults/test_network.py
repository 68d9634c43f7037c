"""What networks do to connections, on either side and in every phase: nothing is lost, nothing is applied twice."""

import time
from collections.abc import Callable

import pytest

from tests.endurance.process import say
from tests.faults.proxy import Proxy
from tests.faults.rig import SILENCE_S, Faulty

SIDES = ["source", "target"]


AGAIN = "trying again"  # of the service, not of what only watches it

Fault = Callable[[Faulty, Proxy], None]


def wait_for_hang_up(rig, proxy, action):
    """Until a session that snapshot or stream depend on is given up."""
    before = rig.log_count(AGAIN)
    action()
    rig.wait_for_log(AGAIN, before + 1)


def cut_rst(rig, proxy):
    """Reject: the peer is gone with a reset."""
    assert proxy.cut()


def cut_fin(rig, proxy):
    assert proxy.cut(reset=False)


def reset_what_we_send(rig, proxy):
    proxy.reset_after(700, "to_server").wait()


def reset_what_we_get(rig, proxy):
    """In the middle of a message."""
    proxy.reset_after(333, "to_client").wait()


def server_side_gone(rig, proxy):
    """Hold: our end stays open, and nobody is behind it any more."""
    wait_for_hang_up(rig, proxy, proxy.half_open)


def our_side_gone(rig, proxy):
    """The server's end stays open, with its locks and the slot, as behind a firewall that forgot us."""
    assert proxy.half_open("client")


def both_sides_silent(rig, proxy):
    """Hold: connections stay, and nothing passes any more."""
    wait_for_hang_up(rig, proxy, proxy.silence)


def stall(rig, proxy):
    """Hold: also new connections get no answer for a while."""
    wait_for_hang_up(rig, proxy, proxy.stall)
    time.sleep(1)
    proxy.resume()


def stall_what_we_get(rig, proxy):
    wait_for_hang_up(rig, proxy, lambda: proxy.stall("to_client"))
    proxy.resume()


def slow(rig, proxy):
    """Respond slowly: no reason to hang up."""
    proxy.delay(0.15)
    time.sleep(SILENCE_S)
    proxy.resume()


def drip(rig, proxy):
    proxy.drip(30_000)
    time.sleep(SILENCE_S)
    proxy.resume()


def refuse(rig, proxy):
    """Reject: nobody listens for a while."""
    proxy.refuse()
    assert proxy.cut()
    time.sleep(1)
    proxy.resume()


def lose_commit(rig, proxy):
    """Fail before write: the checkpoint and the COMMIT, which travel together, never arrive."""
    proxy.lose_request(rig.slot.encode(), only="replicator apply").wait()


def lose_answer_to_commit(rig, proxy):
    """Fail after write: it is committed, and we do not hear of it."""
    proxy.lose_answer(only="replicator apply").wait()


def hold_answer_to_commit(rig, proxy):
    """Hold after write."""
    wait_for_hang_up(rig, proxy, lambda: proxy.lose_answer(only="replicator apply", silence=True).wait())


ANYWHERE: list[Fault] = [
    cut_rst, cut_fin, reset_what_we_send, reset_what_we_get, server_side_gone, our_side_gone, both_sides_silent,
    stall, stall_what_we_get, slow, drip, refuse,
]  # fmt: skip
ON_TARGET: list[Fault] = [lose_commit, lose_answer_to_commit, hold_answer_to_commit]


@pytest.mark.parametrize("side", SIDES)
def test_faults_of_a_network_in_the_stream(make_faulty, rng, side):
    """Other ones in each run."""
    meet(make_faulty(), side, rng.sample(of_side(side), 6))


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("side", SIDES)
def test_every_fault_of_a_network_in_the_stream(make_faulty, side):
    meet(make_faulty(), side, of_side(side))


def of_side(side):
    return [*ANYWHERE, *(ON_TARGET if side == "target" else [])]


def meet(rig, side, faults):
    proxy = rig.proxies[side]
    with rig.writing() as writer:
        rig.service.start()
        rig.wait_for_stream()
        for fault in faults:
            rig.mark()
            reconnects, began = rig.log_count(AGAIN), time.monotonic()
            fault(rig, proxy)
            rig.mark()
            say(f"{fault.__name__}: {time.monotonic() - began:.1f} s")
            if fault in (slow, drip):
                assert rig.log_count(AGAIN) == reconnects
    assert writer.error is None
    rig.finish()
