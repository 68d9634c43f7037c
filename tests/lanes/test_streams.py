"""Two lanes beside each other: each goes at its own pace, and both sides come out equal."""

from __future__ import annotations

import json
import signal
import subprocess

import psycopg
import pytest

from tests.lanes.conftest import TABLES, Writer


def test_one_lane_dies_and_comes_back_while_the_other_goes_on(make_lanes):
    """From two snapshots under load to one cutover; ``verify`` is right all the while."""
    rig = make_lanes(readings=3000)
    with Writer(rig.writers_dsn) as writer:
        rig.start(1, 2)
        rig.wait_until_streaming(1, 2)
        rig.services[2].kill()
        rig.mark("while lane 2 is dead")
        rig.wait_for_mark("while lane 2 is dead", 1)
        assert not rig.arrived(2, "while lane 2 is dead")
        before = rig.applied(2)
        rig.start(2)
        rig.wait_for_mark("while lane 2 is dead", 2)
        assert rig.applied(2) != before
        for _ in range(3):
            found = json.loads(rig.run("verify", "--json"))
            assert found["equal"], found
        status = rig.status()
        assert [(each["lane"], each["slot"]["name"], each["phase"]) for each in status["lanes"]] == [
            (1, rig.slot, "streaming"), (2, f"{rig.slot}_2", "streaming")]  # fmt: skip
        assert {table["name"] for table in status["tables"]} == set(TABLES)
        report = rig.cutover()
        assert rig.services[2].wait_for_end() == 0, "the service of lane 2 ends by itself too"
        assert report["writes_after_fence"] == 0
        written = writer.transactions
    assert written > 50
    assert set(rig.phases().values()) == {"cut_over"}
    rig.assert_same(*TABLES)
    rig.assert_same_sequences()
    assert [service.lives for service in rig.services.values()] == [1, 2]


def test_truncate_across_lanes_empties_all_tables(laned):
    """The stream of a lane names its own tables only, and PostgreSQL truncates none that another one references."""
    with psycopg.connect(laned.source_dsn, autocommit=True) as conn:
        conn.execute("TRUNCATE customers CASCADE")
        conn.execute("INSERT INTO customers (name) VALUES ('after')")
        conn.execute("INSERT INTO readings (customer_id, value) SELECT id, 1 FROM customers")
    laned.mark("after the first")
    laned.wait_for_mark("after the first", 1, 2)
    laned.assert_same(*TABLES)
    with psycopg.connect(laned.source_dsn, autocommit=True) as conn:
        conn.execute("TRUNCATE readings, customers, orders RESTART IDENTITY")
        conn.execute("TRUNCATE events")
        conn.execute("INSERT INTO customers (name) VALUES ('again')")
    laned.mark("after the second")
    laned.wait_for_mark("after the second", 1, 2)
    assert laned.assert_same(*TABLES) == 3
    assert [service.lives for service in laned.services.values()] == [1, 1]


def test_verify_judges_each_table_by_its_own_lane(laned):
    """A lane that is stopped has what it has; the tables of the running one are compared as they move."""
    laned.services[2].terminate(15)
    with Writer(laned.writers_dsn):
        laned.mark("for lane 1")
        laned.wait_for_mark("for lane 1", 1)
        found = json.loads(laned.run("verify", "--json", exits=1))
        assert {table["name"]: table["equal"] for table in found["tables"]} == {
            "customers": True, "orders": True, "readings": False, "events": False}  # fmt: skip
        assert json.loads(laned.run("verify", "--json", "--table", "orders"))["equal"]
    laned.start(2)
    laned.wait_for_mark("for lane 1", 2)
    laned.mark("for both")
    laned.wait_for_mark("for both", 1, 2)
    laned.assert_same(*TABLES)


def test_verify_waits_for_the_lane_that_is_behind(laned):
    """What it has not applied yet is no difference."""
    laned.services[2].process.send_signal(signal.SIGSTOP)
    try:
        laned.mark("behind")
        laned.wait_for_mark("behind", 1)
        verification = laned.popen("verify", "--json")
        with pytest.raises(subprocess.TimeoutExpired):
            verification.wait(5)
    finally:
        laned.services[2].process.send_signal(signal.SIGCONT)
    out, err = verification.communicate(timeout=60)
    assert verification.returncode == 0, out + err
    laned.assert_same(*TABLES)


def test_a_table_is_copied_again_by_the_service_of_its_lane(laned):
    with psycopg.connect(laned.target_dsn) as conn:
        conn.execute("DELETE FROM readings WHERE id < 100")
    assert not json.loads(laned.run("verify", "--json", exits=1))["equal"]
    assert "lane 2: copied again by the running service" in laned.run("snapshot", "--table", "readings")
    laned.assert_same(*TABLES)
    done = json.loads(laned.run("status", "--json"))
    assert {table["name"]: table["state"] for table in done["tables"]} == dict.fromkeys(sorted(TABLES), "copied")


def test_rows_of_one_lane_in_quarantine_are_listed_and_refuse_the_cutover(make_lanes):
    rig = make_lanes(more="[stream]\non_rejected_row = 'quarantine'")
    rig.start(1, 2)
    rig.wait_until_streaming(1, 2)
    with psycopg.connect(rig.target_dsn) as conn:
        conn.execute("DELETE FROM readings WHERE id = 7")
    with psycopg.connect(rig.source_dsn) as conn:
        conn.execute("UPDATE readings SET value = -1 WHERE id = 7")
    rig.mark("behind it")
    rig.wait_for_mark("behind it", 1, 2)
    [change] = json.loads(rig.run("quarantine", "list", "--json"))["changes"]
    assert (change["table"], change["key"]) == ("readings", {"id": "7"})
    status = rig.status(exits=1)
    assert status["quarantined_rows"] == 1
    assert any(problem.startswith("lane 2: 1 changes are in quarantine") for problem in status["problems"])
    assert "1 changes that the target refused" in rig.run("cutover", "--dry-run", exits=1)
    with psycopg.connect(rig.source_dsn) as conn:
        [(customer, value)] = conn.execute("SELECT customer_id, value FROM readings WHERE id = 7").fetchall()
    with psycopg.connect(rig.target_dsn) as conn:
        conn.execute("INSERT INTO readings VALUES (7, %s, 0)", (customer,))
    rig.run("quarantine", "retry")
    assert value == -1
    rig.assert_same(*TABLES)


def test_imported_users_reach_the_tables_of_every_lane(make_lanes, tmp_path):
    ids = ["00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"]
    rig = make_lanes(more="[id_maps.users]\nkind = 'table'\ncolumns = ['orders.note', 'events.note']")
    rig.start(1, 2)
    rig.wait_until_streaming(1, 2)
    rig.mark(ids[0])
    rig.wait_for_mark(ids[0], 1, 2)
    file = tmp_path / "map.json"
    file.write_text(json.dumps({
        "generatedAt": "2026-01-01T00:00:00Z", "retainUntil": "2027-01-01T00:00:00Z",
        "mappings": [{"supabaseUserId": ids[0], "stackAuthUserId": ids[1], "email": "a@example.org",
                      "migratedAt": "2026-01-01T00:00:00Z"}],
    }))  # fmt: skip
    rig.run("users", "import", str(file))
    rig.wait_for_mark(ids[1], 1, 2)
    assert not rig.arrived(1, ids[0])
    assert not rig.arrived(2, ids[0])


def test_a_lane_that_stands_still_does_not_keep_the_other_back(laned):
    laned.services[1].process.send_signal(signal.SIGSTOP)
    try:
        laned.mark("past the other")
        laned.wait_for_mark("past the other", 2)
        assert not laned.arrived(1, "past the other")
    finally:
        laned.services[1].process.send_signal(signal.SIGCONT)
    laned.wait_for_mark("past the other", 1)
    laned.assert_same(*TABLES)
