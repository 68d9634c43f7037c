"""Rows are compared as their route changes them: mapped IDs, renamed columns, tables without a key."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from replicator.verify import buckets
from tests.verify.sides import Sides, counts

Make = Callable[..., Sides]


def user(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"source {number}"))


def stack(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"target {number}"))


def users(policy: str, *columns: str) -> dict[str, object]:
    return {"users": {"kind": "table", "columns": list(columns), "on_unmapped": policy}}


def fill_profiles(sides: Sides, unmapped_on_target: str | None) -> None:
    """Profiles 1 to 5; users 1 to 4 are in the map."""
    sides.on_both("CREATE TABLE profiles (id int PRIMARY KEY, user_id uuid, name text)")
    sides.set_map("users", {user(number): stack(number) for number in range(1, 5)})
    for number in range(1, 5):
        sides.on_source("INSERT INTO profiles VALUES (%s, %s, 'x')", number, user(number))
        sides.on_target("INSERT INTO profiles VALUES (%s, %s, 'x')", number, stack(number))
    sides.on_source("INSERT INTO profiles VALUES (5, %s, 'x')", user(5))
    sides.on_target("INSERT INTO profiles VALUES (5, %s, 'x')", unmapped_on_target)


def test_mapped_columns(make_sides: Make) -> None:
    """The source's own ID on the target is a difference: the row was not mapped."""
    sides = make_sides(id_maps=users("keep", "profiles.user_id"))
    fill_profiles(sides, user(5))
    assert sides.table(live=False).equal
    sides.on_target("UPDATE profiles SET user_id = %s WHERE id = 2", user(2))
    sides.on_target("UPDATE profiles SET user_id = %s WHERE id = 3", stack(4))
    table = sides.table(live=False)
    assert (counts(table), table.keys) == ((0, 0, 2), ("2", "3"))


def test_unmapped_ids_become_null(make_sides: Make) -> None:
    sides = make_sides(id_maps=users("null", "profiles.user_id"))
    fill_profiles(sides, None)
    assert sides.table(live=False).equal
    sides.on_target("UPDATE profiles SET user_id = %s WHERE id = 5", user(5))
    assert counts(sides.table(live=False)) == (0, 0, 1)


def test_an_unmapped_id_that_would_stop_the_stream_equals_nothing(make_sides: Make) -> None:
    """It must end as a difference, neither as an error nor as equal to itself."""
    sides = make_sides(id_maps=users("stop", "profiles.user_id"))
    fill_profiles(sides, user(5))
    table = sides.table(live=False)
    assert (counts(table), table.keys) == ((0, 0, 1), ("5",))


def test_a_mapped_key(make_sides: Make) -> None:
    """Both sides order such rows differently. The swapped pair maps to IDs that exist: only the values tell."""
    sides = make_sides(id_maps=users("keep", "roles.user_id"))
    sides.on_both("CREATE TABLE roles (role text, user_id uuid, v int, PRIMARY KEY (role, user_id))")
    sides.set_map("users", {user(number): stack(number) for number in range(400)})
    for number in range(500):
        mapped = stack(number) if number < 400 else user(number)
        sides.on_source("INSERT INTO roles VALUES (%s, %s, %s)", f"r{number % 3}", user(number), number)
        sides.on_target("INSERT INTO roles VALUES (%s, %s, %s)", f"r{number % 3}", mapped, number)
    assert sides.table(live=False).equal
    sides.on_target("UPDATE roles SET v = 6 - v WHERE v IN (0, 6)")
    sides.on_target("DELETE FROM roles WHERE v IN (7, 450)")
    sides.on_target("INSERT INTO roles VALUES ('r9', %s, 0)", stack(8))
    sides.on_target("UPDATE roles SET user_id = %s WHERE v = 9", user(9))
    table = sides.table(live=False)
    assert (table.source_rows, table.target_rows) == (500, 499)
    assert counts(table) == (3, 2, 2)
    assert set(table.keys) == {
        f"r0, {stack(0)}", f"r0, {stack(6)}", f"r1, {stack(7)}", f"r0, {user(450)}", f"r9, {stack(8)}",
        f"r0, {stack(9)}", f"r0, {user(9)}",
    }  # fmt: skip


def test_renamed_retyped_and_dropped_columns(make_sides: Make) -> None:
    routes = {"notes": {"source": "old_notes", "columns": {"title": "caption", "again": "caption"}}}
    sides = make_sides(tables=("notes",), routes=routes)
    sides.on_source(
        "CREATE TABLE old_notes (gone int, id int PRIMARY KEY, caption varchar(9), tags text[], made timestamptz)"
    )
    sides.on_target(
        "CREATE TABLE notes (made timestamptz(3), title text, again varchar(5), id int PRIMARY KEY, tags text[],"
        " local int DEFAULT 7, twice int GENERATED ALWAYS AS (id * 2) STORED)"
    )
    sides.on_source(
        "INSERT INTO old_notes VALUES (1, 1, 'ab   ', '{a}', '2024-01-01 00:00:00.0004Z'), (2, 2, NULL, NULL, NULL)"
    )
    sides.on_target("INSERT INTO notes VALUES ('2024-01-01Z', 'ab   ', 'ab   ', 1, '{a}'), (NULL, NULL, NULL, 2, NULL)")
    assert sides.table(live=False).equal
    sides.on_target("UPDATE notes SET local = 8")
    assert sides.table(live=False).equal
    sides.on_target("UPDATE notes SET again = 'ab' WHERE id = 1")
    assert counts(sides.table(live=False)) == (0, 0, 1)


def test_without_a_key_rows_are_counted(sides: Sides) -> None:
    """Equal rows count: two here and three there differ by one."""
    sides.on_both("CREATE TABLE t (a int, b text)")
    sides.on_both("INSERT INTO t SELECT g % 10, NULLIF(g % 4, 3)::text FROM generate_series(1, 1000) g")
    assert sides.table(live=False).equal
    sides.on_target("INSERT INTO t VALUES (1, '1'), (77, NULL)")
    sides.on_target("DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE a = 2 AND b = '2' LIMIT 3)")
    table = sides.table(live=False)
    assert (counts(table), table.keys) == ((3, 2, 0), ())
    assert (table.source_rows, table.target_rows) == (1000, 999)


def test_too_many_differences_without_order_are_bounded(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays flat: what is not looked into is told as a lower bound, never as equal."""
    monkeypatch.setattr(buckets, "MAX_ROWS", 100)
    sides.on_both("CREATE TABLE t (a int)")
    sides.on_source("INSERT INTO t SELECT generate_series(1, 5000)")
    report = sides.verify(live=False)
    [table] = report.tables
    assert table.missing > 500
    assert table.different > 1000
    assert table.missing + table.different <= 5000
    assert any("at least" in note for note in report.notes)


def test_keys_that_the_target_does_not_enforce(sides: Sides) -> None:
    """Without a constraint there may be rows twice, or without a key."""
    sides.on_source("CREATE TABLE t (id int PRIMARY KEY, v int)")
    sides.on_target("CREATE TABLE t (id int, v int)")
    sides.on_source("INSERT INTO t SELECT g, g FROM generate_series(1, 10) g")
    sides.on_target("INSERT INTO t SELECT g, g FROM generate_series(1, 9) g")
    sides.on_target("INSERT INTO t VALUES (3, 3), (4, 0), (NULL, 10)")
    table = sides.table(live=False)
    assert counts(table) == (1, 3, 0)
    assert set(table.keys) == {"3", "4", "10"}


def test_replica_identity_index_is_the_key(sides: Sides) -> None:
    sides.on_both("CREATE TABLE t (code text NOT NULL UNIQUE, v int)")
    sides.on_both("ALTER TABLE t REPLICA IDENTITY USING INDEX t_code_key")
    sides.on_source("INSERT INTO t VALUES ('a', 1), ('b', 2)")
    sides.on_target("INSERT INTO t VALUES ('a', 1), ('b', 3)")
    table = sides.table(live=False)
    assert (counts(table), table.keys) == ((0, 0, 1), ("b",))


def test_odd_names(make_sides: Make) -> None:
    sides = make_sides(tables=('My "odd" table',))
    sides.on_both('CREATE TABLE "My ""odd"" table" ("Key""s" text PRIMARY KEY, "select %s" int)')
    sides.on_source("""INSERT INTO "My ""odd"" table" VALUES ('it''s', 1), ('%s', 2)""")
    sides.on_target("""INSERT INTO "My ""odd"" table" VALUES ('it''s', 1), ('%s', 0)""")
    table = sides.table(live=False)
    assert (counts(table), table.keys) == ((0, 0, 1), ("%s",))
