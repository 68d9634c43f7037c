"""Faults of the network while the stream catches up, and in a cutover's drain."""

import time

import psycopg
import pytest

from tests.endurance.rig import COMMAND_TIMEOUT_S
from tests.faults.rig import SILENCE_S


@pytest.mark.parametrize("side", ["source"])
def test_faults_while_it_catches_up(make_faulty, side):
    """With a backlog, so that connections break in the middle of large messages and batches."""
    rig = make_faulty()
    proxy = rig.proxies[side]
    session, direction = ("replicator stream", "to_client") if side == "source" else ("replicator apply", "to_server")
    with rig.writing() as writer:
        rig.service.start()
        rig.mark()
        rig.proxies["source"].refuse()
        rig.proxies["source"].cut()
        rig.ask("source", "INSERT INTO journal SELECT n, 'backlog' FROM generate_series(1, 30000) AS n")
        traps = [proxy.reset_after(size, direction, only=session) for size in (20_000, 300_000)]
        for trap in traps:
            rig.proxies["source"].listen()
            trap.wait()
        rig.mark()
    assert writer.error is None
    rig.finish()


@pytest.mark.parametrize("side", ["target"])
def test_a_line_of_the_service_dies_in_a_cutovers_drain(make_faulty, side):
    """The cutover goes on once the service has connected anew."""
    rig = make_faulty()
    with rig.writing() as writer:
        rig.service.start()
        rig.wait_until_near()
        since = rig.clock()
        with psycopg.connect(rig.target_dsn) as blocker:
            blocker.execute("LOCK TABLE journal IN SHARE ROW EXCLUSIVE MODE")
            process = rig.popen("cutover", "--yes", "--max-lag-bytes", str(1 << 40), "--verify", "none")
            rig.wait_until(lambda: rig.cutover_steps(since).get("drain") == "running", "no drain")
            rig.proxies[side].silence("replicator stream" if side == "source" else "replicator apply")
            time.sleep(SILENCE_S)
        out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
    assert process.returncode == 0, (out, err)
    assert writer.error is None
    assert rig.service.wait_for_end() == 0
    rig.compare()
