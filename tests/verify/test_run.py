"""The verification as a whole: what it reports, how it ends early, what it leaves behind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import LiteralString, cast

import psutil
import pytest
from prometheus_client import REGISTRY

from replicator import config
from replicator.demo.freshtrack import TABLES, generate, settings_toml, source_schema, target_schema, write_map_file
from replicator.errors import ConfigError, Refused
from replicator.verify import Progress, verify
from tests.conftest import ALL_PAIRS
from tests.verify.sides import Sides, counts

SECRET = "not to be seen anywhere"


def fill_two(sides: Sides) -> None:
    sides.on_both("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text)")
    sides.on_both("INSERT INTO a SELECT g, 'x' FROM generate_series(1, 30000) g; INSERT INTO b VALUES (1, 'x')")
    sides.on_both("ANALYZE")


def test_the_json_document(sides: Sides) -> None:
    """Runbooks and scripts read it: these names and no others."""
    fill_two(sides)
    sides.on_target("UPDATE a SET v = %s WHERE id = 7", SECRET)
    document = sides.verify(live=False).to_json()
    assert json.loads(json.dumps(document)) == document
    assert document.keys() == {"equal", "lsn", "tables", "foreign_keys", "notes"}
    assert document["equal"] is False
    assert document["tables"] == [
        {"name": "a", "source_rows": 30000, "target_rows": 30000, "equal": False, "missing": 0, "extra": 0,
         "different": 1, "keys": ["7"]},
        {"name": "b", "source_rows": 1, "target_rows": 1, "equal": True, "missing": 0, "extra": 0, "different": 0,
         "keys": []},
    ]  # fmt: skip
    assert SECRET not in json.dumps(document)


def test_summary_and_metric(sides: Sides) -> None:
    fill_two(sides)
    assert sides.verify(live=False).summary().startswith("2 tables, 30,001 rows: equal at ")
    sides.on_target("DELETE FROM a WHERE id <= 3; UPDATE b SET v = NULL")
    summary = sides.verify(live=False).summary()
    assert "a (3 missing)" in summary
    assert "b (1 different)" in summary
    assert REGISTRY.get_sample_value("replicator_verify_differences", {"table": "a"}) == 3


def test_counts_only(sides: Sides) -> None:
    fill_two(sides)
    sides.on_target("DELETE FROM a WHERE id <= 3; UPDATE b SET v = NULL; INSERT INTO b VALUES (2, ''), (3, '')")
    a, b = sides.verify(live=False, counts_only=True).tables
    assert (counts(a), counts(b)) == ((3, 0, 0), (0, 2, 0))
    assert (b.source_rows, b.target_rows) == (1, 3)


def test_chosen_tables(sides: Sides) -> None:
    fill_two(sides)
    assert [table.name for table in sides.verify("b", live=False).tables] == ["b"]
    with pytest.raises(ConfigError, match=r"not replicated: other\.c"):
        sides.verify("other.c", live=False)


def test_fail_fast_leaves_the_rest(sides: Sides) -> None:
    """One difference is answer enough; what was not looked at must not appear as equal."""
    fill_two(sides)
    sides.on_target("UPDATE b SET v = ''")
    sides.on_both("CREATE TABLE c (id int PRIMARY KEY, v text)")
    sides.on_both("INSERT INTO c SELECT g, repeat('x', 300) FROM generate_series(1, 30000) g")
    sides.on_both("ANALYZE")
    report = sides.verify(live=False, fail_fast=True)
    assert not report.equal
    assert "b" in {table.name for table in report.tables if not table.equal}
    assert any("not complete" in note for note in report.notes)


def test_progress_is_told(sides: Sides) -> None:
    fill_two(sides)
    told: list[Progress] = []
    sides.verify(live=False, progress=told.append)
    assert {each.table: each.rows for each in told if each.done} == {"a": 30000, "b": 1}
    assert {each.table: each.expected for each in told} == {"a": 30000, "b": 1}


def test_stop(sides: Sides) -> None:
    fill_two(sides)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Refused, match="stopped"):
        sides.verify(live=False, stop=stop)


def test_stop_while_the_server_keeps_us_waiting(sides: Sides) -> None:
    """It may send nothing for minutes: while it sorts, or while somebody holds a lock as here."""
    fill_two(sides)
    routes = sides.routes()
    stop = threading.Event()
    with sides.target.transaction():
        sides.on_target("LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
        threading.Timer(0.5, stop.set).start()
        started = time.monotonic()
        with pytest.raises(Refused, match="stopped"):
            verify(sides.settings, routes, live=False, stop=stop)
        assert time.monotonic() - started < 10


def test_a_server_error_is_told_without_values(sides: Sides) -> None:
    """Reading fails half-way: the error ends the verification, and its sessions."""
    fill_two(sides)
    routes = sides.routes()
    sides.on_target("ALTER TABLE b DROP COLUMN v")
    with pytest.raises(Exception, match=r"target: column r\.v does not exist"):
        verify(sides.settings, routes, live=False)
    sessions = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name = 'replicator verify' AND datname = current_database()"
    )
    deadline = time.monotonic() + 10
    while number(sides, sessions) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert number(sides, sessions) == 0


def test_foreign_keys_of_and_into_the_tables(sides: Sides) -> None:
    """Loading with triggers off checks none of them."""
    sides.on_both("CREATE TABLE parent (id int, part int, PRIMARY KEY (id, part))")
    sides.on_both("CREATE TABLE child (id int PRIMARY KEY, p int, q int)")
    sides.on_target(
        "ALTER TABLE child ADD CONSTRAINT known FOREIGN KEY (p, q) REFERENCES parent;"
        "ALTER TABLE child ADD CONSTRAINT lax FOREIGN KEY (p, q) REFERENCES parent NOT VALID;"
        "CREATE TABLE audit (child_id int CONSTRAINT seen REFERENCES child)"
    )
    sides.on_both("INSERT INTO parent VALUES (1, 1), (2, 1)")
    sides.on_source("INSERT INTO child VALUES (1, 1, 1), (2, 2, 2), (3, NULL, 9), (4, 2, 1)")
    sides.on_target(
        "SET session_replication_role = replica;"
        "INSERT INTO child VALUES (1, 1, 1), (2, 2, 2), (3, NULL, 9), (4, 2, 1);"
        "INSERT INTO audit VALUES (1), (77), (78), (NULL)"
    )
    sides.settings = sides.settings.model_copy(update={"tables": ("parent", "child")})
    report = sides.verify(live=False)
    assert [(key.table, key.name, key.orphans) for key in report.foreign_keys] == [
        ("audit", "seen", 2),
        ("child", "known", 1),
    ]
    assert all(table.equal for table in report.tables)
    assert not report.equal
    assert "child.known (1 orphans)" in report.summary()
    assert sides.verify("parent", live=False, counts_only=True).equal


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_the_freshtrack_case(make_sides: Callable[..., Sides], tmp_path: Path) -> None:
    """Partitions, lookups and the users map at once, with values that bite."""
    sides = make_sides()
    sides.on_source(cast(LiteralString, source_schema()))
    sides.on_target(cast(LiteralString, target_schema()))
    with sides.source.transaction():
        generate(sides.source, 3000, seed=5)
    users = write_map_file(sides.source, tmp_path / "user-mapping.json", leave_out=3)
    settings = tmp_path / "replicator.toml"
    settings.write_text(settings_toml(sides.settings.source.dsn, sides.settings.target.dsn))
    sides.settings = config.load(settings)
    move(sides, users)
    report = sides.verify(live=False)
    assert report.equal, report.summary()
    assert len(report.tables) == len(TABLES)
    assert len(report.foreign_keys) > 30

    sides.on_target(
        "UPDATE profiles SET user_id = gen_random_uuid() WHERE id = (SELECT min(id::text)::uuid FROM profiles)"
    )
    sides.on_target("UPDATE calibration_records SET calibrated_by = gen_random_uuid() WHERE calibrated_by IS NULL")
    sides.on_target("DELETE FROM sensor_readings WHERE id IN (SELECT id FROM sensor_readings ORDER BY id LIMIT 30)")
    sides.on_target("UPDATE event_logs SET payload = payload || ' ' WHERE payload IS NOT NULL")
    unknown = "calibration_records c LEFT JOIN profiles p ON p.user_id = c.calibrated_by WHERE p.id IS NULL"
    expected = {
        "profiles": (0, 0, 1),
        "calibration_records": (0, 0, number(sides, f"SELECT count(*) FROM {unknown}")),
        "sensor_readings": (30, 0, 0),
        "event_logs": (0, 0, number(sides, "SELECT count(*) FROM event_logs WHERE payload IS NOT NULL")),
    }
    assert {table.name: counts(table) for table in sides.verify(live=False).tables if not table.equal} == expected


def move(sides: Sides, users: dict[str, str]) -> None:
    """Copy all tables and map the users, with SQL of our own."""
    sides.on_target("SET session_replication_role = replica; SET search_path = public")
    sides.on_source("SET search_path = public")
    for table in TABLES:
        sides.copy(table)
    profiles = {user: profile for profile, user in sides.source.execute("SELECT id::text, user_id::text FROM profiles")}
    sides.set_map("users", users)
    sides.set_map("profile_of_user", profiles)
    for table, column, name, missed in (
        ("profiles", "user_id", "users", "t.user_id"),
        ("user_roles", "user_id", "users", "t.user_id"),
        ("calibration_records", "calibrated_by", "profile_of_user", "NULL"),
        ("alert_rules_history", "changed_by", "profile_of_user", "NULL"),
    ):
        sides.on_target(
            cast(
                LiteralString,
                f"UPDATE {table} t SET {column} = coalesce((SELECT m.target_id::uuid FROM replicator.id_map m"
                f" WHERE m.map = '{name}' AND m.source_id = t.{column}::text), {missed})",
            )
        )


def number(sides: Sides, query: LiteralString) -> int:
    [(count,)] = sides.source.execute(query).fetchall()
    return int(count)


@pytest.mark.parametrize("table", ["keyed", "keyless"])
def test_memory_does_not_grow_with_the_table(sides: Sides, table: LiteralString) -> None:
    """Rows of both sides amount to 120 MB; only what is on its way is held."""
    key = "PRIMARY KEY (id)" if table == "keyed" else "CHECK (true)"
    sides.on_both(
        f"CREATE TABLE {table} (id int, body text, {key}); ALTER TABLE {table} ALTER body SET STORAGE EXTERNAL"
    )
    sides.on_both(f"INSERT INTO {table} SELECT g, repeat(g::text, 300) FROM generate_series(1, 40000) g")
    process = psutil.Process()
    before, highest = process.memory_info().rss, 0

    def watch(_: Progress) -> None:
        nonlocal highest
        highest = max(highest, process.memory_info().rss)

    report = sides.verify(live=False, progress=watch)
    assert report.equal
    assert report.tables[0].source_rows == 40000
    assert highest - before < 25 << 20


def test_more_differences_than_there_is_room_for(sides: Sides) -> None:
    """Beyond 100,000 they are counted as they are first seen, which is exact where nothing moves."""
    sides.on_both("CREATE TABLE t (id int PRIMARY KEY)")
    sides.on_source("INSERT INTO t SELECT generate_series(1, 130000)")
    sides.on_target("INSERT INTO t SELECT generate_series(120001, 140000)")
    report = sides.verify(live=False)
    assert counts(report.tables[0]) == (120000, 10000, 0)
    assert len(report.tables[0].keys) == 20
    assert any("first seen" in note for note in report.notes)
