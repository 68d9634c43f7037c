"""Lanes that are taken out of the settings after they were copied: nothing is lost, and nothing is left unsaid."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg

from tests.lanes.conftest import TABLES


def outcome(rig, *words):
    process = rig.popen(*words)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_lanes_taken_out_of_the_settings(laned):
    """Their tables would be nobody's: no service starts and no cutover comes about until they are back."""
    file = Path(laned.options[1])
    with_lanes = file.read_text()
    for service in laned.services.values():
        service.terminate(15)
    file.write_text(with_lanes.partition("[lanes]")[0])
    laned.mark("while it was out")

    code, _, message = outcome(laned, "run", "--until-caught-up")
    assert code == 3
    assert "does not publish readings, events" in message
    code, _, message = outcome(laned, "cutover", "--yes")
    assert code == 1
    assert "events is not copied" in message
    code, checked, _ = outcome(laned, "check", "--json")
    assert code == 1
    [warning] = [each for each in json.loads(checked)["checks"] if each["status"] == "warn" and each["name"] == "slot"]
    assert laned.slot_of(2) in warning["message"]
    assert "[lanes]" in warning["remedy"]

    file.write_text(with_lanes)
    laned.start(1, 2)
    laned.wait_for_mark("while it was out", 1, 2)
    laned.assert_same(*TABLES)
    code, checked, _ = outcome(laned, "check", "--json")
    assert not [each for each in json.loads(checked)["checks"] if each["name"] == "slot" and each["status"] != "pass"]


def test_a_teardown_without_them_says_what_it_leaves(laned):
    file = Path(laned.options[1])
    for service in laned.services.values():
        service.terminate(15)
    text = file.read_text().partition("[lanes]")[0]
    file.write_text(text)
    code, said, _ = outcome(laned, "teardown", "--yes")
    assert code == 0
    assert f"the state of slot {laned.slot_of(2)}, which the settings do not name" in said
    file.write_text(
        text.replace(f'slot = "{laned.slot}"', f'slot = "{laned.slot_of(2)}"\npublication = "replicator_2"')
    )
    code, said, _ = outcome(laned, "teardown", "--yes")
    assert code == 0
    for dsn, left in (
        (laned.source_dsn, "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"),
        (laned.source_dsn, "SELECT pubname FROM pg_publication"),
        (laned.target_dsn, "SELECT nspname FROM pg_namespace WHERE nspname = 'replicator'"),
    ):
        with psycopg.connect(dsn) as conn:
            assert conn.execute(left).fetchall() == []
