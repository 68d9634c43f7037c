import hashlib
import json
import tomllib
import uuid

import psycopg
import pytest

from replicator import config
from replicator.demo.freshtrack import (
    EXTRA_TABLES,
    TABLES,
    extras_schema,
    generate,
    settings_toml,
    source_schema,
    target_schema,
    write_map_file,
)
from replicator.demo.freshtrack.values import BITING_TEXTS
from tests.conftest import ALL_MAJORS
from tests.oracle import assert_same_rows, assert_valid_foreign_keys

ROWS = 1_500


@pytest.fixture(scope="module")
def filled(servers):
    """Two databases that the generator filled with the same seed; nobody changes them."""
    server = servers.get(max(major.values[0] for major in ALL_MAJORS))
    names = ("filled_1", "filled_2")
    dsns = []
    for name in names:
        dsns.append(server.create_database(name))
        with psycopg.connect(dsns[-1]) as conn:
            conn.execute(source_schema())
            generate(conn, ROWS, seed=7)
    yield dsns
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        for name in names:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def filled_conn(filled):
    with psycopg.connect(filled[0]) as conn:
        yield conn


def scalar(conn, query, *parameters):
    return conn.execute(query, parameters or None).fetchone()[0]


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_the_source_schema_loads_with_row_security_on_every_table(database):
    with psycopg.connect(database) as conn:
        conn.execute(source_schema() + extras_schema())
        tables = conn.execute(
            "SELECT relname, relrowsecurity FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        ).fetchall()
        assert {name for name, _ in tables} == {*TABLES, *EXTRA_TABLES}
        assert {name for name, secured in tables if secured} == set(TABLES)
        assert scalar(conn, "SELECT count(*) FROM pg_class WHERE relforcerowsecurity") == 3
        assert scalar(conn, "SELECT relkind FROM pg_class WHERE relname = 'sensor_readings'") == "r"


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_the_target_schema_splits_readings_into_thirty_months_and_a_default(database):
    with psycopg.connect(database) as conn:
        conn.execute(target_schema() + extras_schema())
        partitions = scalar(conn, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'sensor_readings'::regclass")
        assert partitions == 31
        key = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'p'"
        assert scalar(conn, key, "sensor_readings") == "PRIMARY KEY (id, recorded_at)"
        conn.execute("SET TimeZone = 'UTC'")
        bound = scalar(
            conn, "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = 'sensor_readings_2024_12'"
        )
        assert bound == "FOR VALUES FROM ('2024-12-01 00:00:00+00') TO ('2025-01-01 00:00:00+00')"


def test_partition_bounds_do_not_depend_on_the_session_time_zone(database):
    with psycopg.connect(database, options="-c TimeZone=America/New_York") as conn:
        conn.execute(target_schema())
        conn.execute("SET TimeZone = 'UTC'")
        bound = scalar(
            conn, "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = 'sensor_readings_2024_01'"
        )
        assert bound == "FOR VALUES FROM ('2024-01-01 00:00:00+00') TO ('2024-02-01 00:00:00+00')"


def test_both_sides_have_the_same_columns(pair):
    """The case is replicated as it is: names, types, nullability and order agree."""
    columns = (
        "SELECT attrelid::regclass::text, attnum, attname, format_type(atttypid, atttypmod), attnotnull"
        " FROM pg_attribute WHERE attrelid = ANY (%s::regclass[]) AND attnum > 0 ORDER BY 1, 2"
    )
    found = []
    for dsn, schema in ((pair.source_dsn, source_schema()), (pair.target_dsn, target_schema())):
        with psycopg.connect(dsn) as conn:
            conn.execute(schema)
            found.append(conn.execute(columns, [list(TABLES)]).fetchall())
    assert len(found[0]) > 200
    assert found[0] == found[1]


def test_the_target_triggers_would_show(pair):
    """What a replicator must not set off is really there."""
    with psycopg.connect(pair.target_dsn) as conn:
        conn.execute(target_schema())
        conn.execute("INSERT INTO organizations (name, slug, updated_at) VALUES ('a', 'a', '2024-01-01')")
        assert scalar(conn, "SELECT updated_at > '2025-01-01' FROM organizations")
        assert scalar(conn, "SELECT count(*) FROM trigger_audit WHERE table_name = 'organizations'") == 1


def test_a_sign_up_makes_profile_and_role(database):
    with psycopg.connect(database) as conn:
        conn.execute(source_schema())
        organization = scalar(conn, "INSERT INTO organizations (name, slug) VALUES ('a', 'a') RETURNING id")
        user = uuid.uuid4()
        conn.execute(
            "INSERT INTO auth.users (id, email, raw_user_meta_data, raw_app_meta_data) VALUES (%s, 'e@x', %s, %s)",
            [user, '{"full_name": "Ana"}', json.dumps({"organization_id": str(organization), "role": "staff"})],
        )
        assert conn.execute("SELECT user_id, full_name FROM profiles").fetchall() == [(user, "Ana")]
        assert conn.execute("SELECT user_id, role FROM user_roles").fetchall() == [(user, "staff")]
        conn.execute("DELETE FROM auth.users")
        assert scalar(conn, "SELECT count(*) FROM profiles") == 0


def test_the_same_seed_gives_the_same_rows(filled):
    with psycopg.connect(filled[0]) as first, psycopg.connect(filled[1]) as second:
        counts = {table: assert_same_rows(first, second, table) for table in (*TABLES, "auth.users")}
    assert all(counts.values()), counts
    assert sum(counts.values()) == ROWS


def test_another_seed_gives_other_rows(filled, database):
    with psycopg.connect(database) as conn, psycopg.connect(filled[0]) as first:
        conn.execute(source_schema())
        generate(conn, ROWS, seed=8)
        with pytest.raises(AssertionError, match="sensor_readings: "):
            assert_same_rows(first, conn, "sensor_readings")


def test_generated_rows_are_referentially_valid(filled_conn):
    assert assert_valid_foreign_keys(filled_conn) == 38


def test_texts_bite(filled_conn):
    """Every value survives COPY unchanged, and every one is there."""
    found = {text for (text,) in filled_conn.execute("SELECT description FROM corrective_actions")}
    found |= {
        text
        for (text,) in filled_conn.execute(
            "SELECT message FROM alerts UNION SELECT notes FROM "
            "calibration_records UNION SELECT description FROM event_logs"
        )
    }
    assert set(BITING_TEXTS) <= found
    assert None in found


def test_numbers_and_times_bite(filled_conn):
    temperatures = filled_conn.execute("SELECT temperature::text FROM manual_temperature_logs").fetchall()
    assert {("NaN",), ("0.00",), ("99999.99",), ("-99999.99",)} <= set(temperatures)
    times = "SELECT count(*) FROM sensor_readings WHERE recorded_at "
    assert scalar(filled_conn, times + "= 'infinity'") > 0
    assert scalar(filled_conn, times + "= '-infinity'") > 0
    assert scalar(filled_conn, times + "< '0001-01-01 00:00:00+00 BC'") > 0
    assert scalar(filled_conn, times + "> '2026-07-01' AND isfinite(recorded_at)") > 0


def test_long_texts_are_stored_out_of_line(filled_conn):
    for column, table in (("payload", "event_logs"), ("metadata", "alerts")):
        stored = filled_conn.execute(
            f"SELECT pg_column_size({column}) FROM {table} WHERE length({column}) >= 900000"
        ).fetchall()
        assert len(stored) == 3
        assert sum(size >= 1_000_000 for (size,) in stored) == 2  # the third compresses
    assert (
        scalar(filled_conn, "SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE relname = 'alerts'") > 2_000_000
    )


def test_event_logs_are_chained_by_hash(filled_conn):
    rows = filled_conn.execute(
        "SELECT id::text, payload, previous_hash, hash, organization_id FROM event_logs"
    ).fetchall()
    hashes = {digest for _, _, _, digest, _ in rows}
    for event, payload, previous, digest, _ in rows:
        assert digest == hashlib.sha256(f"{event}{payload or ''}{previous or ''}".encode()).hexdigest()
        assert previous is None or previous in hashes
    organizations = {organization for *_, organization in rows}
    assert sum(previous is None for _, _, previous, _, _ in rows) == len(organizations)


def test_user_columns_hold_what_the_maps_expect(filled_conn):
    orphans = "SELECT count(*) FROM {0} WHERE {1} IS NOT NULL AND NOT EXISTS (SELECT FROM profiles WHERE user_id = {1})"
    for table, column in (("calibration_records", "calibrated_by"), ("alert_rules_history", "changed_by")):
        total = scalar(filled_conn, f"SELECT count({column}) FROM {table}")
        deleted = scalar(filled_conn, orphans.format(table, column))
        assert 0 < deleted < total
    hashes = {(h or "NULL")[:7] for (h,) in filled_conn.execute("SELECT encrypted_password FROM auth.users")}
    assert {"$argon2", "NULL"} < hashes
    assert scalar(filled_conn, "SELECT count(*) FROM auth.users WHERE email IS NULL") > 0


def test_the_map_file_leaves_out_users_with_a_profile(filled_conn, tmp_path):
    mapping = write_map_file(filled_conn, tmp_path / "user-mapping.json", leave_out=4)
    document = json.loads((tmp_path / "user-mapping.json").read_text())
    assert {m["supabaseUserId"]: m["stackAuthUserId"] for m in document["mappings"]} == mapping
    users = scalar(filled_conn, "SELECT count(*) FROM auth.users")
    assert len(mapping) == users - 4 == len(set(mapping.values()))
    assert not set(mapping) & set(mapping.values())
    assert all(uuid.UUID(target).version == 5 for target in mapping.values())
    left_out = "SELECT count(*) FROM profiles WHERE NOT user_id::text = ANY (%s)"
    assert scalar(filled_conn, left_out, list(mapping)) == 4
    assert write_map_file(filled_conn, tmp_path / "again.json", leave_out=4) == mapping


def test_settings_name_all_tables_and_both_maps():
    text = settings_toml(
        "postgresql://a:p%25@h/s", "postgresql://h/t\\é🧊", extras=True, listen=":0", stream={"max_batch_rows": 5}
    )
    settings = tomllib.loads(text)
    assert settings["source"] == {"dsn": "postgresql://a:p%25@h/s"}
    assert settings["target"] == {"dsn": "postgresql://h/t\\é🧊"}
    assert settings["tables"] == [*TABLES, *EXTRA_TABLES]
    assert settings["stream"] == {"max_batch_rows": 5}
    assert settings["metrics"] == {"listen": ":0"}
    assert set(settings["id_maps"]) == {"users", "profile_of_user"}
    assert "id_maps" not in tomllib.loads(settings_toml("a", "b", id_maps=False))


def test_the_settings_are_valid(tmp_path):
    path = tmp_path / "replicator.toml"
    path.write_text(settings_toml("postgresql://h/s", "postgresql://h/t", extras=True, listen="127.0.0.1:0"))
    settings = config.load(path)
    assert len(settings.tables) == len(TABLES) + len(EXTRA_TABLES)
    assert set(settings.id_maps) == {"users", "profile_of_user"}
