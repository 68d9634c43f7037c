"""The target's disk is full: the service waits, says why, and goes on when there is room."""

import json
import tempfile
from pathlib import Path

import pytest

from tests.conftest import DatabasePair
from tests.faults.shims import Disk

FULL = "could not extend file"


@pytest.fixture
def disk():
    # Not under pytest's own directory, which the server's user may not enter.
    with tempfile.TemporaryDirectory(prefix="full-disk-") as name:
        Path(name).chmod(0o755)
        yield Disk(Path(name))


@pytest.fixture
def full_pair(pair, disk):
    """The target on a server of its own, whose disk can be full."""
    with disk.server_class.start(pair.target.major) as target:
        yield DatabasePair(pair.source, target, pair.source_dsn, target.create_database("app"))


def test_the_service_waits_for_room_on_the_target(make_faulty, full_pair, disk):
    rig = make_faulty(full_pair)
    with rig.writing() as writer:
        rig.service.start()
        rig.mark()
        disk.fill()
        rig.wait_for_log(FULL, 3)
        status = json.loads(rig.run("status", "--json", exits=1))
        assert any(FULL in problem for problem in status["problems"]), status
        transactions = writer.transactions
        disk.make_room()
        rig.mark()
        assert writer.transactions > transactions
    assert writer.error is None
    rig.finish()
    assert json.loads(rig.run("status", "--json"))["problems"] == []


def test_a_snapshot_waits_for_room_on_the_target(make_faulty, full_pair, disk):
    rig = make_faulty(full_pair, rows=20_000)
    with rig.writing() as writer:
        rig.ask("target", "CREATE TABLE warm_up (); DROP TABLE warm_up")
        trap = rig.proxies["target"].reset_after(300_000, "to_server", only="replicator copy")
        rig.service.start()
        trap.wait()
        disk.fill()
        rig.wait_for_log(FULL, 3)
        disk.make_room()
        rig.mark()
    assert writer.error is None
    rig.finish()
