"""Snapshots of lanes, what is looked at before, and what is refused."""

from __future__ import annotations

import json

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.lanes.conftest import DDL, TABLES, settings_toml

DROPPED = "SELECT index_name FROM replicator.deferred_index WHERE state = 'dropped' ORDER BY 1"


def test_lanes_are_copied_one_after_another(make_lanes):
    rig = make_lanes()
    said = rig.run("snapshot")
    assert said == "lane 1: snapshot complete\nlane 2: snapshot complete\n"
    assert rig.phases() == {rig.slot: "catching_up", f"{rig.slot}_2": "catching_up"}
    published = rig.ask("source", "SELECT pubname, tablename FROM pg_publication_tables ORDER BY 1, 2")
    assert published == [("replicator", "customers"), ("replicator", "orders"), ("replicator_2", "events"),
                         ("replicator_2", "readings")]  # fmt: skip
    rig.assert_same(*TABLES)


def test_a_lane_that_is_done_leaves_the_indexes_of_another_alone(make_lanes):
    """Building them would wait for that copy, and keep it waiting."""
    rig = make_lanes(readings=15_000)
    killed = rig.popen("snapshot", "--lane", "2", failpoints="before_index_rebuild=kill")
    killed.communicate(timeout=120)
    assert killed.returncode != 0
    assert rig.ask_state(DROPPED) == [("readings_pkey",), ("readings_value",)]
    assert rig.run("snapshot", "--lane", "1") == "lane 1: snapshot complete\n"
    assert rig.ask_state(DROPPED) == [("readings_pkey",), ("readings_value",)]
    assert rig.run("snapshot", "--lane", "2") == "lane 2: snapshot complete\n"
    assert rig.ask_state(DROPPED) == []
    rig.assert_same(*TABLES)


def test_truncate_of_a_lane_empties_its_own_tables_alone(make_lanes):
    """Also those that a table of another lane references, which PostgreSQL would not truncate."""
    rig = make_lanes()
    with psycopg.connect(rig.target_dsn) as conn:
        conn.execute("INSERT INTO customers (name) VALUES ('somebody else''s')")
        conn.execute("INSERT INTO readings (customer_id, value) VALUES (1, 1)")
    assert "lane 2: phase new: 2 tables to copy" in rig.run("snapshot", "--dry-run", exits=1)
    assert rig.run("snapshot", "--lane", "1", "--truncate", "--yes") == "lane 1: snapshot complete\n"
    assert rig.ask("target", "SELECT count(*) FROM readings") == [(1,)]
    rig.run("snapshot", "--lane", "2", exits=1)
    rig.run("snapshot", "--lane", "2", "--truncate", "--yes")
    rig.assert_same(*TABLES)


def test_usage(make_lanes):
    rig = make_lanes()
    for words, told in (
        (["run"], "lanes 1 and 2, each with a service of its own"),
        (["run", "--lane", "3"], "there is no lane 3"),
        (["snapshot", "--lane", "3"], "there is no lane 3"),
        (["run", "--lane", "0"], "--lane"),
    ):
        process = rig.popen(*words)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, told in err) == (2, True), err


def test_check_and_plan_name_the_lanes(make_lanes):
    rig = make_lanes()
    checks = json.loads(rig.run("check", "--json"))["checks"]
    lanes = [check["message"] for check in checks if check["name"] == "lanes"]
    assert lanes == ["lane 1: customers, orders", "lane 2: events, readings"]
    assert f"lane 2: {rig.slot}_2 does not exist yet" in [
        check["message"] for check in checks if check["name"] == "slot"
    ]
    plan = json.loads(rig.run("plan", "--json"))
    assert plan["ok"]
    assert {table["name"]: table["lane"] for table in plan["tables"]} == {
        "customers": 1, "orders": 1, "readings": 2, "events": 2}  # fmt: skip
    assert plan["source_objects"]["slot"] == rig.slot
    assert [(lane["lane"], lane["slot"], lane["publication"]) for lane in plan["lanes"]] == [
        (1, rig.slot, "replicator"), (2, f"{rig.slot}_2", "replicator_2")]  # fmt: skip
    assert '"readings"' in plan["lanes"][1]["publication_sql"]
    assert '"readings"' not in plan["lanes"][0]["publication_sql"]
    assert f"slot {rig.slot}_2 of lane 2" in rig.run("plan")
    assert json.loads(rig.run("status", "--json"))["phase"] == "new"


def test_every_lane_needs_a_slot_and_a_sender(make_lanes, start_server):
    rig = make_lanes()
    small = start_server(rig.source.major, settings={"max_replication_slots": "1", "max_wal_senders": "1"})
    dsn = small.create_database("app")
    with psycopg.connect(dsn) as conn:
        conn.execute(DDL)
    found = json.loads(rig.run("--source", dsn, "check", "--json", exits=1))["checks"]
    failed = {check["name"]: check["message"] for check in found if check["status"] == "fail"}
    assert failed == dict.fromkeys(
        ("replication_slots", "wal_senders"), "0 of 1 are in use, and 2 lanes need one each")  # fmt: skip


@pytest.fixture
def plain_role(pair):
    """DSN of a role on the target that may not turn foreign keys off, and owns the tables."""
    name = "laned_plain"
    pair.target.create_role(name)
    with psycopg.connect(pair.target_dsn, autocommit=True) as conn:
        conn.execute(f"GRANT ALL ON DATABASE {conn.info.dbname} TO {name}")
    yield name
    with psycopg.connect(pair.target_dsn, autocommit=True) as conn:
        conn.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def test_live_foreign_keys_must_not_lead_from_lane_to_lane(make_lanes, plain_role):
    rig = make_lanes()
    with psycopg.connect(rig.target_dsn, autocommit=True) as conn:
        for table in TABLES:
            conn.execute(f"ALTER TABLE {table} OWNER TO {plain_role}")
    dsn = make_conninfo(rig.target_dsn, user=plain_role)
    told = "leads from lane 2 to customers of lane 1"
    checks = json.loads(rig.run("--target", dsn, "check", "--json", exits=1))["checks"]
    assert [check["table"] for check in checks if check["status"] == "fail" and told in check["message"]] == [
        "readings"
    ]
    assert [fault["table"] for fault in json.loads(rig.run("--target", dsn, "plan", "--json", exits=1))["faults"]
            if told in fault["message"]] == ["readings"]  # fmt: skip
    process = rig.popen("--target", dsn, "snapshot", "--lane", "2")
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert told in err
    assert rig.ask("source", "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", f"{rig.slot}_2") == [
        (0,)
    ]


def test_a_table_stays_in_the_lane_that_has_copied_it(make_lanes, pair):
    rig = make_lanes(lanes='2 = ["events"]')
    rig.run("snapshot")
    (rig.directory / "settings.toml").write_text(settings_toml(pair, rig.slot, '2 = ["events", "orders"]'))
    told = f"the settings give the table to lane 2, and it was copied by slot {rig.slot}"
    assert any(told in problem for problem in rig.status(exits=1)["problems"])
    for lane in (1, 2):
        process = rig.popen("run", "--lane", str(lane), "--until-caught-up")
        _, err = process.communicate(timeout=60)
        assert process.returncode != 0
        if lane == 1:
            assert told in err
    (rig.directory / "settings.toml").write_text(settings_toml(pair, rig.slot, '2 = ["events"]'))
    for lane in (1, 2):
        rig.run("run", "--lane", str(lane), "--until-caught-up")
    rig.assert_same(*TABLES)


def set_lanes(rig, pair, lanes):
    """Without ``tables``: all that the source has."""
    text = settings_toml(pair, rig.slot, lanes).split("\n", 1)[1]
    (rig.directory / "settings.toml").write_text(text)


def test_a_lane_names_a_table_that_does_not_exist(make_lanes, pair):
    """Not even lane 1 may begin: it would copy the table that was meant."""
    rig = make_lanes()
    set_lanes(rig, pair, '2 = ["raedings", "events"]')
    remedy = "correct the name in [lanes]"
    found = json.loads(rig.run("check", "--json", exits=1))["checks"]
    [check] = [check for check in found if check.get("table") == "raedings"]
    assert ("no table raedings on the source" in check["message"], remedy in check["remedy"]) == (True, True)
    [fault] = json.loads(rig.run("plan", "--json", exits=1))["faults"]
    assert ("no table raedings on the source" in fault["message"], remedy in fault["remedy"]) == (True, True)
    for words in (["run", "--lane", "1"], ["run", "--lane", "2"], ["snapshot"]):
        process = rig.popen(*words)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2, err
        assert "lanes: not on the source: raedings" in err
        assert remedy in err
    assert rig.phases() == {}
    assert rig.ask("source", "SELECT count(*) FROM pg_replication_slots WHERE slot_name ^@ %s", rig.slot) == [(0,)]


def test_a_name_that_a_lane_is_given_later_has_to_exist_and_what_was_dropped_need_not(make_lanes, pair):
    rig = make_lanes()
    set_lanes(rig, pair, '2 = ["readings", "events"]')
    rig.run("snapshot", "--lane", "2")
    set_lanes(rig, pair, '2 = ["readings", "events", "raedings"]')
    process = rig.popen("run", "--lane", "2", "--until-caught-up")
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "there is no table raedings on the source — correct the name in [lanes]" in err
    set_lanes(rig, pair, '2 = ["readings", "events"]')
    rig.ask("source", "DROP TABLE events")
    rig.run("snapshot", "--lane", "1")
    for lane in ("1", "2"):
        rig.run("run", "--lane", lane, "--until-caught-up")
    rig.assert_same("customers", "orders", "readings")
