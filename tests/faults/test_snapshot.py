"""What networks do to connections while the snapshot copies: it is taken up again, and ends equal."""

import time

import pytest

from tests.endurance.process import say
from tests.faults.test_network import AGAIN, ANYWHERE, SIDES, drip, reset_what_we_get, reset_what_we_send, slow

COPY = "replicator copy"
# Every part of a table waits with its rows sent and not committed, so that a fault always meets a copy.
SLOWLY = "before_part=slow:0.3"


def lose_commit(rig, proxy):
    """Fail before write: a part's COMMIT never arrives."""
    proxy.lose_request(only=COPY).wait()


def lose_answer_to_commit(rig, proxy):
    """Fail after write: a part is committed, and who copied it does not hear of it."""
    proxy.lose_answer(only=COPY).wait()


def hold_answer_to_commit(rig, proxy):
    """Hold after write."""
    proxy.lose_answer(only=COPY, silence=True).wait()


def reset_rows(rig, proxy):
    """In the middle of a message, far behind the start of the session."""
    direction = "to_client" if proxy is rig.proxies["source"] else "to_server"
    proxy.reset_after(30_000, direction, only=COPY).wait()


def reset_at_the_start(rig, proxy):
    """The other way: there only a few words go."""
    direction = "to_server" if proxy is rig.proxies["source"] else "to_client"
    proxy.reset_after(333, direction, only=COPY).wait()


OF_COPIES = [reset_rows, reset_at_the_start, lose_commit, lose_answer_to_commit, hold_answer_to_commit]


def of_side(side):
    """The source's part of a copy only reads: what becomes of its COMMIT is all the same."""
    anywhere = [fault for fault in ANYWHERE if fault not in (reset_what_we_send, reset_what_we_get)]
    return anywhere + OF_COPIES[: None if side == "target" else 2]


def test_faults_of_a_network_in_the_snapshot(make_faulty, rng):
    """Other ones in each run."""
    side = rng.choice(SIDES)
    meet(make_faulty, side, rng.sample(of_side(side), 3))


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("side", SIDES)
def test_every_fault_of_a_network_in_the_snapshot(make_faulty, side):
    meet(make_faulty, side, of_side(side), rows=90_000)


def meet(make_faulty, side, faults, *, rows=12_000):
    rig = make_faulty(rows=rows, REPLICATOR_SNAPSHOT__WORKERS="2", REPLICATOR_SNAPSHOT__SPLIT_ABOVE="64kB")
    proxy = rig.proxies[side]
    met = []  # some of these stay, half open

    def copies():
        return [link for link in proxy.links(COPY) if all(link is not old for old in met)]

    with rig.writing() as writer:
        rig.service.start(failpoints=SLOWLY)
        for fault in faults:
            rig.wait_until(copies, "nothing is copied")
            if fault not in (slow, drip):
                met += copies()
            assert rig.phase() == "copying", f"the snapshot was done before {fault.__name__}"
            attempts, began = rig.log_count(AGAIN), time.monotonic()
            fault(rig, proxy)
            if fault in (slow, drip):
                assert rig.log_count(AGAIN) == attempts
            else:
                rig.wait_for_log(AGAIN, attempts + 1)
            say(f"{fault.__name__}: {time.monotonic() - began:.1f} s")
        rig.wait_for_stream()
        rig.mark()
    assert writer.error is None
    rig.finish()
