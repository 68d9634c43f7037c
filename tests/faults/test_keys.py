"""A command killed while keys of the target are gone: nothing else misses them, and the next one brings them back."""

from __future__ import annotations

import json
import signal

import psycopg
import pytest

TABLES = """
CREATE TABLE readings (id int PRIMARY KEY, at int UNIQUE, value int);
CREATE INDEX readings_value ON readings (value);
CREATE TABLE small (id int PRIMARY KEY);
"""
AWAY = "SELECT index_name FROM replicator.deferred_index WHERE state = 'dropped' ORDER BY 1"
ALL = [("readings_at_key",), ("readings_pkey",), ("readings_value",)]
KEYS = """
SELECT conname, pg_get_constraintdef(oid), conindid::regclass::text FROM pg_constraint
WHERE connamespace = 'public'::regnamespace ORDER BY 1
"""


@pytest.fixture
def rig(make_plain):
    rig = make_plain(TABLES)
    with psycopg.connect(rig.source_dsn) as conn:
        conn.execute("INSERT INTO readings SELECT n, n, n % 7 FROM generate_series(1, 12000) AS n")
        conn.execute("INSERT INTO small VALUES (1)")
    with psycopg.connect(rig.source_dsn, autocommit=True) as conn:
        conn.execute("ANALYZE")
    return rig


def killed(rig, *words, at="before_index_rebuild=kill"):
    process = rig.popen(*words, failpoints=at)
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err


def catch_up(rig):
    rig.run("run", "--until-caught-up")
    assert rig.ask_state(AWAY) == []
    assert rig.assert_same("readings", "small") == 12_001


def test_a_run_that_was_killed_without_the_keys_is_taken_up(rig):
    """Plan and checks say the same as ever: the keys that they go by are the source's."""
    keys = rig.ask("target", KEYS)
    plan = json.loads(rig.run("plan", "--json"))
    killed(rig, "run")
    assert rig.ask_state(AWAY) == ALL
    again = json.loads(rig.run("plan", "--json"))
    assert again == plan
    checks = json.loads(rig.run("check", "--json"))["checks"]
    assert [check["message"] for check in checks if check["status"] == "fail"] == []
    assert [check["status"] for check in checks if check["name"] == "key_index"] == ["pass"]
    killed(rig, "run")  # in the same place: the keys of a table whose rows are in
    catch_up(rig)
    assert rig.ask("target", KEYS) == keys


def test_a_table_that_was_copied_again_without_its_keys_gets_them_before_the_stream_goes_on(rig):
    catch_up(rig)
    keys = rig.ask("target", KEYS)
    killed(rig, "snapshot", "--table", "readings")
    assert rig.ask_state(AWAY) == ALL
    rig.ask("source", "UPDATE readings SET value = 0 WHERE id < 100")
    catch_up(rig)
    assert rig.ask("target", KEYS) == keys


def test_a_teardown_brings_the_keys_back(rig):
    keys = rig.ask("target", KEYS)
    killed(rig, "snapshot")
    rig.run("teardown", "--yes")
    assert rig.ask("target", KEYS) == keys


def test_rows_that_the_source_may_hold_and_the_target_not_are_copied_again_once_they_are_mended(rig):
    """As where the key is kept: the table begins anew, since a change on the source finds no row twice."""
    rig.ask("source", "ALTER TABLE readings DROP CONSTRAINT readings_at_key")
    rig.ask("source", "UPDATE readings SET at = 1 WHERE id = 2")
    for _ in range(2):
        process = rig.popen("run")
        _, err = process.communicate(timeout=120)
        assert process.returncode == 3, err
        assert "readings: its rows violate the constraint readings_at_key, which cannot be rebuilt" in err
        assert "remove the duplicates on the source" in err
    rig.ask("source", "UPDATE readings SET at = 2 WHERE id = 2")
    catch_up(rig)
