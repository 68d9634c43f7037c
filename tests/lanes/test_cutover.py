"""One cutover over all lanes: all of them hand over, or none."""

from __future__ import annotations

import json
import signal

import psycopg

from tests.cutover.conftest import read_only_setting
from tests.lanes.conftest import TABLES, Writer


def refused(rig, *options):
    """The report of a cutover that does not come about, and the message."""
    file = rig.directory / "refused.json"
    process = rig.popen("cutover", "--yes", "--report", str(file), *options)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    return json.loads(file.read_text()), err


def assert_open(rig, text):
    with psycopg.connect(rig.source_dsn) as conn:
        assert read_only_setting(conn) is None
    assert set(rig.phases().values()) == {"streaming"}
    rig.mark(text)
    rig.wait_for_mark(text, 1, 2)
    rig.assert_same(*TABLES)


def test_a_cutover_is_refused_while_a_lane_does_not_run(laned):
    laned.services[2].terminate(15)
    report, message = refused(laned, "--timeout", "10")
    assert report["outcome"] == "refused"
    assert report["steps"][1]["state"] == "pending", "nothing was frozen"
    failed = [gate["message"] for gate in report["gates"] if gate["state"] == "fail"]
    assert "lane 2: the service does not run" in failed
    assert all(text.startswith("lane 2: ") for text in failed)
    assert "replicator run --lane 2" in message
    laned.start(2)
    assert_open(laned, "after it was refused")


def test_a_cutover_that_one_lane_does_not_keep_up_with_is_undone_in_all(laned):
    """Lane 1 has delivered the fence, lane 2 stands still: both go on."""
    laned.services[2].process.send_signal(signal.SIGSTOP)
    try:
        report, message = refused(laned, "--timeout", "3")
        assert report["outcome"] == "undone"
        assert {step["name"]: step["state"] for step in report["steps"]}["drain"] == "failed"
        assert "lane 2: the stream did not deliver the fence within 3 s" in message
        [(fence,)] = laned.ask("target", "SELECT fence FROM replicator.checkpoint WHERE slot = %s", laned.slot)
        assert fence is not None, "lane 1 has delivered it"
        assert set(laned.phases().values()) == {"streaming"}
    finally:
        laned.services[2].process.send_signal(signal.SIGCONT)
    assert_open(laned, "after it was undone")
    laned.cutover()
    assert laned.services[2].wait_for_end() == 0
    laned.assert_same(*TABLES)


def test_a_cutover_that_was_killed_is_aborted_in_all_lanes(laned):
    killed = laned.popen("cutover", "--yes", failpoints="before_step:verify=kill")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert set(laned.phases().values()) == {"cutting_over"}
    laned.run("cutover", "abort")
    assert_open(laned, "after the abort")


def test_teardown_takes_the_slots_and_publications_of_all_lanes(laned):
    with Writer(laned.writers_dsn):
        report = laned.cutover()
    assert laned.services[2].wait_for_end() == 0
    kept = "\n".join(report["kept"])
    assert f"slot {laned.slot} " in kept
    assert f"slot {laned.slot}_2 " in kept
    laned.assert_same(*TABLES)
    said = laned.run("teardown", "--yes")
    assert f"removed slot {laned.slot} on the source" in said
    assert f"removed slot {laned.slot}_2 on the source" in said
    ours = laned.ask("source", "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")
    assert ours == []
    assert laned.ask("source", "SELECT pubname FROM pg_publication") == []
    assert laned.ask("target", "SELECT to_regclass('replicator.checkpoint')") == [(None,)]
