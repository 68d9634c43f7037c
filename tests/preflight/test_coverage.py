"""Columns that hold user IDs and pass through no map."""

import psycopg
import pytest

from replicator.config import IdMapSettings
from replicator.preflight import coverage
from replicator.target import state
from tests.preflight.sides import Sides

USERS = [f"00000000-0000-4000-8000-{n:012x}" for n in range(1, 41)]
SCHEMA = """
    CREATE TABLE people (user_id uuid PRIMARY KEY);
    CREATE DOMAIN person AS uuid;
    CREATE TABLE notes (
        id int PRIMARY KEY,
        author uuid,
        editor person,
        reviewer text,
        stranger uuid,
        meta jsonb,
        body text,
        nothing uuid
    );
"""
MAPS = {"users": IdMapSettings(kind="table", columns=["people.user_id"])}


@pytest.fixture
def sides(pair):
    sides = Sides(pair.source_dsn, pair.target_dsn)
    sides.both(SCHEMA)
    with psycopg.connect(pair.source_dsn, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA auth; CREATE TABLE auth.users (id uuid PRIMARY KEY)")
        conn.cursor().executemany("INSERT INTO auth.users VALUES (%s)", [(user,) for user in USERS])
        conn.execute("INSERT INTO people SELECT id FROM auth.users")
        conn.execute(
            "INSERT INTO notes SELECT row_number() OVER (), id, id, upper(id::text), gen_random_uuid(),"
            " jsonb_build_object('by', id), 'written by ' || id || ' today' FROM auth.users"
        )
    return sides


def uncovered(sides: Sides, **options) -> set[str]:
    checks = sides.check(id_maps=MAPS, **options).named("id_coverage")
    return {check.message.split()[0] for check in checks if check.status.value == "warn"}


ALL = {"notes.author", "notes.editor", "notes.reviewer", "notes.meta", "notes.body"}


def test_columns_are_found_by_the_users_of_the_source(sides):
    assert uncovered(sides) == ALL
    text = sides.check(id_maps=MAPS).text("id_coverage")
    assert "IDs of auth.users" in text
    assert "inside its jsonb" in text
    assert USERS[0] not in text, "never a value"


def test_columns_are_found_by_the_entries_of_the_map(sides):
    """Also where ``auth.users`` is not there: the map is what counts."""
    with psycopg.connect(sides.target_dsn, autocommit=True) as conn:
        state.migrate(conn)
        conn.cursor().executemany(
            "INSERT INTO replicator.id_map (map, source_id, target_id) VALUES ('users', %s, 'x')",
            [(user,) for user in USERS[:5]],
        )
    sides.source("DROP TABLE auth.users")
    assert uncovered(sides) == ALL
    assert "IDs of the map" in sides.check(id_maps=MAPS).text("id_coverage")


def test_a_column_that_a_map_covers_is_none_of_them(sides):
    maps = {"users": IdMapSettings(kind="table", columns=["people.user_id", "notes.author", "notes.reviewer"])}
    found = sides.check(id_maps=maps).named("id_coverage")
    assert {check.message.split()[0] for check in found} == {"notes.editor", "notes.meta", "notes.body"}


def test_without_an_id_map_nobody_asks(sides):
    assert sides.check().named("id_coverage") == []


def test_without_users_there_is_nothing_to_find(sides):
    sides.source("DROP TABLE auth.users")
    found = sides.check(id_maps=MAPS)
    assert found.status("id_coverage") == {"pass"}
    assert found.status("auth_users") == {"warn"}


def test_a_large_table_is_sampled(sides, monkeypatch):
    """The same answer, though only a part of the table is read."""
    monkeypatch.setattr(coverage, "_SCAN_ROWS", 2_000)
    sides.source(
        "INSERT INTO notes (id, author, editor, reviewer, meta, body)"
        " SELECT 100 + n, u.id, u.id, u.id::text, jsonb_build_object('by', u.id), 'by ' || u.id"
        " FROM auth.users u CROSS JOIN generate_series(1, 10000, 40) g CROSS JOIN LATERAL"
        " (SELECT g * 40 + (row_number() OVER ())::int + ('x' || right(u.id::text, 2))::bit(8)::int AS n) AS k"
        " ON CONFLICT DO NOTHING"
    )
    sides.source("ANALYZE notes")
    [(rows,)] = sides.source("SELECT reltuples FROM pg_class WHERE relname = 'notes'")
    assert rows > 2_000
    assert uncovered(sides) == ALL
