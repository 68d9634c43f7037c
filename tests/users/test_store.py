"""The map on the target: imported all or none, exported as it came, purged only when nobody needs it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replicator.errors import Refused
from replicator.model.lsn import ZERO
from replicator.postgres.connection import Connection, connect, query
from replicator.routing.idmap import Unmapped
from replicator.target import state
from replicator.target.idmaps import load_maps, record_unmapped, store_entries
from replicator.users import ImportResult, export_file, import_file, load_status, lookup, purge
from tests.conftest import ALL_MAJORS, DatabasePair

RETAIN = "2031-04-02T03:04:05.678000Z"


def user(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"source {number}"))


def stack(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"target {number}"))


def map_file(tmp_path: Path, pairs: dict[int, int], **more: Any) -> Path:
    path = tmp_path / "user-mapping.json"
    mappings = [
        {"supabaseUserId": user(source), "stackAuthUserId": stack(target), "email": f"u{source}@example.org",
         "migratedAt": "2026-01-02T03:04:05.678000Z"}
        for source, target in pairs.items()
    ]  # fmt: skip
    path.write_text(json.dumps({"retainUntil": RETAIN, "mappings": mappings, **more}))
    return path


@pytest.fixture
def target(database: str) -> Iterator[Connection]:
    with connect(database, "target", purpose="test") as conn:
        yield conn


def map_version(conn: Connection) -> int:
    [(version,)] = query(conn, "SELECT map_version FROM replicator.checkpoint")
    return int(version)


def start_stream(conn: Connection, phase: str = "streaming") -> None:
    state.migrate(conn)
    state.create_checkpoint(conn, "replicator", ZERO, "1", "app")
    state.set_phase(conn, "replicator", phase)


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_import_into_a_fresh_target(target: Connection, tmp_path: Path) -> None:
    """Users are imported before the first run: our schema is not there yet."""
    assert import_file(target, map_file(tmp_path, {1: 1, 2: 2})) == ImportResult(2, 0, 0)
    maps = load_maps(target, ["users"])
    assert dict(maps.entries("users")) == {user(1): stack(1), user(2): stack(2)}
    rows = query(target, "SELECT email, retain_until, created_at FROM replicator.id_map ORDER BY email")
    retain_until, created_at = datetime.fromisoformat(RETAIN), datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    assert rows == [("u1@example.org", retain_until, created_at), ("u2@example.org", retain_until, created_at)]


def test_the_running_service_is_told_of_changes_alone(target: Connection, tmp_path: Path) -> None:
    start_stream(target)
    before = map_version(target)
    import_file(target, map_file(tmp_path, {1: 1}))
    assert map_version(target) == before + 1
    assert import_file(target, map_file(tmp_path, {1: 1})) == ImportResult(0, 0, 1)
    assert map_version(target) == before + 1
    assert import_file(target, map_file(tmp_path, {1: 1, 2: 2})) == ImportResult(1, 0, 1)
    assert map_version(target) == before + 2


def test_retention_defaults_to_90_days(target: Connection, tmp_path: Path) -> None:
    import_file(target, map_file(tmp_path, {1: 1}, retainUntil=None))
    [(retain_until,)] = query(target, "SELECT retain_until FROM replicator.id_map")
    assert abs(retain_until - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=5)


def test_another_target_needs_replace(target: Connection, tmp_path: Path) -> None:
    """Rows may carry the old ID already: not by accident, and then none of the file is taken in."""
    import_file(target, map_file(tmp_path, {1: 1, 2: 2}))
    changed = map_file(tmp_path, {3: 3, 2: 9})
    with pytest.raises(Refused) as caught:
        import_file(target, changed)
    assert "mappings[1] has another stackAuthUserId" in caught.value.message
    assert "--replace" in caught.value.hint
    assert stack(9) not in caught.value.message + caught.value.hint
    assert dict(load_maps(target, ["users"]).entries("users")) == {user(1): stack(1), user(2): stack(2)}
    assert import_file(target, changed, replace=True) == ImportResult(1, 1, 0)
    assert load_maps(target, ["users"]).target_id("users", user(2)) == stack(9)


def test_import_into_another_map(target: Connection, tmp_path: Path) -> None:
    import_file(target, map_file(tmp_path, {1: 1}))
    assert import_file(target, map_file(tmp_path, {1: 2}), "staff") == ImportResult(1, 0, 0)
    assert load_maps(target, ["users", "staff"]).target_id("staff", user(1)) == stack(2)


def test_a_big_file(target: Connection, tmp_path: Path) -> None:
    pairs = {number: number for number in range(20_000)}
    assert import_file(target, map_file(tmp_path, pairs)).added == 20_000
    assert import_file(target, map_file(tmp_path, pairs)).unchanged == 20_000


def test_export_is_what_was_imported(target: Connection, tmp_path: Path) -> None:
    path = map_file(tmp_path, {number: number for number in range(20)})
    import_file(target, path)
    out = tmp_path / "out.json"
    assert export_file(target, out) == 20
    original, exported = json.loads(path.read_text()), json.loads(out.read_text())
    assert exported["retainUntil"] == original["retainUntil"]
    by_id = {mapping["supabaseUserId"]: mapping for mapping in original["mappings"]}
    assert {mapping["supabaseUserId"]: mapping for mapping in exported["mappings"]} == by_id
    assert import_file(target, out).unchanged == 20


def test_nothing_to_export(target: Connection, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="the map users is empty"):
        export_file(target, tmp_path / "out.json")
    state.migrate(target)
    store_entries(target, "codes", {"a": "b"})
    with pytest.raises(Refused, match="no UUIDs"):
        export_file(target, tmp_path / "out.json", "codes")
    assert not (tmp_path / "out.json").exists()


def test_lookup_from_either_side(target: Connection, tmp_path: Path) -> None:
    assert lookup(target, user(1)) == []
    import_file(target, map_file(tmp_path, {1: 1, 2: 2}))
    [found] = lookup(target, user(1).upper())
    assert (found.map, found.source_id, found.target_id, found.email) == ("users", user(1), stack(1), "u1@example.org")
    assert lookup(target, stack(1)) == [found]
    assert lookup(target, user(3)) == []


def test_purge_removes_what_has_expired(target: Connection, tmp_path: Path) -> None:
    assert purge(target) == 0
    import_file(target, map_file(tmp_path, {1: 1}, retainUntil="2020-01-01T00:00:00Z"))
    import_file(target, map_file(tmp_path, {2: 2}))
    store_entries(target, "profile_of_user", {user(1): user(7)})
    assert purge(target) == 1
    assert lookup(target, user(1))[0].map == "profile_of_user"
    assert len(lookup(target, user(2))) == 1
    assert purge(target, expired_only=False) == 1
    assert [entry.map for entry in lookup(target, user(1))] == ["profile_of_user"]


def test_purge_waits_for_the_cutover(target: Connection, tmp_path: Path) -> None:
    """Without its entries the stream would write source IDs."""
    import_file(target, map_file(tmp_path, {1: 1}, retainUntil="2020-01-01T00:00:00Z"))
    start_stream(target)
    for phase in state.PHASES[:-1]:
        state.set_phase(target, "replicator", phase)
        for expired_only in (True, False):
            with pytest.raises(Refused, match="in use"):
                purge(target, expired_only=expired_only)
    state.set_phase(target, "replicator", "cut_over")
    assert purge(target) == 1


def test_status_of_nothing(target: Connection) -> None:
    status = load_status(target)
    assert status.to_json() == {
        "unmapped_ids": 0,
        "maps": [
            {"name": "users", "entries": 0, "unmapped_ids": 0, "columns": [], "retain_until": None,
             "first_expiry": None, "expired": 0, "source_users": None, "covered": None}
        ],
    }  # fmt: skip


def test_status(pair: DatabasePair, tmp_path: Path) -> None:
    """Unmapped IDs count once however many columns hold them, and not at all once they have an entry."""
    with (
        connect(pair.source_dsn, "source", purpose="test") as source,
        connect(pair.target_dsn, "target", purpose="test") as target,
    ):
        import_file(target, map_file(tmp_path, {1: 1, 2: 2}))
        import_file(target, map_file(tmp_path, {3: 3}, retainUntil="2020-01-01T00:00:00Z"))
        store_entries(target, "profile_of_user", {user(1): user(7)})
        record_unmapped(
            target,
            [
                Unmapped("users", ("public", "profiles"), "user_id", user(8)),
                Unmapped("users", ("public", "user_roles"), "user_id", user(8)),
                Unmapped("users", ("public", "user_roles"), "user_id", user(9)),
                Unmapped("users", ("public", "profiles"), "user_id", user(1)),
                Unmapped("profile_of_user", ("app", "alerts"), "resolved_by", user(9)),
            ],
        )
        assert [each.covered for each in load_status(target, source).maps] == [None, None]

        source.execute("CREATE SCHEMA auth; CREATE TABLE auth.users (id uuid PRIMARY KEY)")
        for number in (1, 3, 8, 9):
            source.execute("INSERT INTO auth.users VALUES (%s)", [user(number)])
        lookups, users = load_status(target, source).maps
    assert (users.entries, users.unmapped_ids, users.expired) == (3, 2, 1)
    by_column = {(each.table, each.column): each.ids for each in users.columns}
    assert by_column == {("profiles", "user_id"): 1, ("user_roles", "user_id"): 2}
    assert (users.source_users, users.covered) == (4, 2)
    assert users.first_expiry == datetime(2020, 1, 1, tzinfo=UTC)
    assert (lookups.name, lookups.entries, lookups.unmapped_ids) == ("profile_of_user", 1, 1)
    assert [c.table for c in lookups.columns] == ["app.alerts"]
    assert (lookups.source_users, lookups.covered, lookups.retain_until) == (None, None, None)


def test_status_where_auth_users_may_not_be_read(pair: DatabasePair) -> None:
    role = f"reader_{uuid.uuid4().hex[:8]}"
    pair.source.create_role(role)
    try:
        with psycopg.connect(pair.source_dsn, autocommit=True) as admin:
            admin.execute("CREATE SCHEMA auth; CREATE TABLE auth.users (id uuid PRIMARY KEY)")
        dsn = pair.source.dsn(psycopg.conninfo.conninfo_to_dict(pair.source_dsn)["dbname"], role)
        with (
            connect(dsn, "source", purpose="test") as source,
            connect(pair.target_dsn, "target", purpose="test") as target,
        ):
            [users] = load_status(target, source).maps
            assert (users.source_users, users.covered) == (None, None)
            assert query(source, "SELECT 1") == [(1,)]
    finally:
        with psycopg.connect(pair.source.dsn(), autocommit=True) as admin:
            admin.execute(f"DROP ROLE {role}")
