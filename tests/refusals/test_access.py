"""Addresses, passwords, roles and settings: exit code 2 and what to correct, before anything is begun."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.conftest import DatabasePair
from tests.refusals.site import ROW_VALUE, Site

_WRONG = "ein-falsches-Passwort"


def with_password(dsn: str, password: str) -> str:
    parts = urlsplit(dsn)
    return parts._replace(netloc=f"{parts.username}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()


def with_database(dsn: str, name: str) -> str:
    return urlsplit(dsn)._replace(path=f"/{name}").geturl()


def trusts_everybody(dsn: str) -> bool:
    try:
        psycopg.connect(with_password(dsn, _WRONG)).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("side", ["source", "target"])
def test_wrong_password(site: Site, side: str) -> None:
    dsn = site.source_dsn if side == "source" else site.target_dsn
    if trusts_everybody(dsn):
        pytest.skip("this server asks for no password")
    says = (f"{side}: .*password authentication failed", "correct the password .*PGPASSWORD")
    site.refused(2, "run", f"--{side}", with_password(dsn, _WRONG), says=says)
    assert site.slots() == 0


def test_port_of_a_pooler(site: Site) -> None:
    """It would answer, and fail much later: a pooler cannot replicate."""
    dsn = f"postgresql://postgres.abc:{_WRONG}@aws-0-eu-central-1.pooler.example.org:6543/postgres"
    site.refused(2, "run", "--source", dsn, says=("source DSN leads to a connection pooler", "direct .*5432"))
    assert site.slots() == 0


def test_target_database_missing(site: Site) -> None:
    dsn = with_database(site.target_dsn, "no_such_database")
    says = ('target: .*"no_such_database" does not exist', "correct the database or role name")
    site.refused(2, "run", "--target", dsn, says=says)
    assert site.slots() == 0


def test_unknown_key_in_the_settings(site: Site) -> None:
    """Every fault has a line of its own: where, what, how to mend. No value is shown: it may hold a password."""
    site.more = f'[snapshot]\nwrokers = 2\n[stream]\nmax_batch_rows = "{_WRONG}"\non_new_colunm = "stop"\n'
    says = (
        r"replicator\.toml: snapshot\.wrokers: unknown key; remove it or correct its name",
        r"replicator\.toml: stream\.on_new_colunm: unknown key; remove it or correct its name",
        r"replicator\.toml: stream\.max_batch_rows: .*integer",
    )
    ended = site.refused(2, "run", says=says)
    assert len(ended.err.splitlines()) == 3
    assert _WRONG not in ended.err
    assert site.slots() == 0


def test_map_file_of_a_dry_run(site: Site) -> None:
    """Its IDs belong to nobody: users mapped to them could not log in. All or none of a file is taken."""
    good = {"supabaseUserId": "a63d4f1a-8f0f-4c6e-9d5b-1b3f43a4cf10", "email": f"{ROW_VALUE}@example.org"}
    users = [
        good | {"stackAuthUserId": "0c1b7ad6-94c4-43a5-9f8d-4c5b3d7f3f0e"},
        good | {"supabaseUserId": "f4b1c2f5-3f0c-4a3e-8d4f-1f8d8a0c9b11", "stackAuthUserId": "dry-run-f4b1c2f5"},
    ]
    file = site.directory / "user-mapping.json"
    file.write_text(json.dumps({"mappings": users}))
    says = (r"user-mapping\.json: mappings\[1\]\.stackAuthUserId is of a dry run", "the file that the real run wrote")
    ended = site.refused(1, "users", "import", str(file), says=says)
    assert "f4b1c2f5" not in ended.err
    users[1]["stackAuthUserId"] = "5d0a3a86-1f64-4b0f-a7b5-5d7a3ccf8a55"
    file.write_text(json.dumps({"mappings": users}))
    assert "2 users added" in site.done("users", "import", str(file)).out


def test_target_role_without_rights(site: Site, pair: DatabasePair) -> None:
    name = f"{site.slot}_poor"
    pair.target.create_role(name)
    database = str(conninfo_to_dict(site.target_dsn)["dbname"])
    dsn = pair.target.dsn(database, user=name)
    try:
        says = ("target: permission denied for database", "grant the role of the target DSN")
        site.refused(2, "run", "--target", dsn, says=says)
        site.sql("target", f'GRANT CREATE ON DATABASE "{database}" TO {name}')
        says = ("target: permission denied for table customers", "grant the role of the target DSN")
        site.refused(2, "run", "--target", dsn, says=says)
        assert site.slots() == 0
        site.sql("target", f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO {name}")
        site.done("run", "--until-caught-up", "--target", dsn)
        site.assert_equal()
    finally:
        site.sql("target", f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def test_source_role_without_bypassrls(site: Site, pair: DatabasePair) -> None:
    """Row-level security would hide rows from it without an error."""
    name = f"{site.slot}_poor"
    pair.source.create_role(name, "REPLICATION")
    dsn = pair.source.dsn(str(conninfo_to_dict(site.source_dsn)["dbname"]), user=name)
    site.sql(
        "source",
        f"""
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name};
        ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
        CREATE POLICY half ON notes FOR SELECT USING (id % 2 = 0);
        CREATE PUBLICATION {site.slot} FOR TABLE customers, orders, notes WITH (publish_via_partition_root = true);
        """,
    )
    try:
        site.ends(2, "run", "--source", dsn, says=('row-level security policy for table "notes"', "BYPASSRLS"))
        assert site.value("target", "SELECT count(*) FROM notes") == 0
        site.sql("source", f"ALTER ROLE {name} BYPASSRLS")
        site.done("run", "--until-caught-up", "--source", dsn)
        site.assert_equal()
    finally:
        site.sql("source", f"DROP OWNED BY {name} CASCADE")
        site.sql("source", f"DROP ROLE {name}")
