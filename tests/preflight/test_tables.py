"""Checks of tables: each is provoked on real servers, and silent without cause."""

import time
from pathlib import Path

import psycopg
import pytest

from replicator.demo.freshtrack import TABLES
from replicator.preflight import run_checks
from replicator.teardown import teardown
from tests.conftest import ALL_PAIRS
from tests.preflight.sides import Findings, Sides, execute
from tests.snapshot.case import Case, freshtrack_case

PLAIN = "CREATE TABLE t (id int PRIMARY KEY, v text)"


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_the_freshtrack_case_is_sound_on_every_pair_of_versions(pair, tmp_path):
    case = freshtrack_case(pair.source_dsn, pair.target_dsn, tmp_path, 2_000)
    sides = Sides(pair.source_dsn, pair.target_dsn)
    settings = case.settings
    found = Findings(run_checks(settings))
    assert found.bad() <= {("collation", "warn")}, [c for c in found.all if c.status.value != "pass"]
    assert f"{len(TABLES)} tables can be replicated" in found.text("routes")
    assert case.run()
    after = Findings(run_checks(settings))
    assert after.bad() <= {("collation", "warn")}
    assert "fits the checkpoint" in after.text("slot")
    assert "publishes 23 tables" in after.text("publication")
    assert sides.source("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == [(1,)]


ENUM = "CREATE TYPE mood AS ENUM ({}); CREATE TABLE t (id int PRIMARY KEY, m {})"

# what is done to the source, to the target → (check, status), words of its message
PROVOKED = {
    "no key": ("CREATE TABLE t (v text)", None, ("replica_identity", "warn"), "neither a primary key nor an identity"),
    "identity nothing": (
        PLAIN + "; ALTER TABLE t REPLICA IDENTITY NOTHING",
        PLAIN,
        ("replica_identity", "warn"),
        "REPLICA IDENTITY NOTHING",
    ),
    "identity full without a key": (
        "CREATE TABLE t (v text); ALTER TABLE t REPLICA IDENTITY FULL",
        "CREATE TABLE t (v text)",
        ("replica_identity", "warn"),
        "comparing whole rows",
    ),
    "identity index that is gone": (
        PLAIN + "; CREATE UNIQUE INDEX i ON t (id); ALTER TABLE t REPLICA IDENTITY USING INDEX i; DROP INDEX i",
        PLAIN,
        ("replica_identity", "warn"),
        "only INSERTs",
    ),
    "table missing": (PLAIN, "SELECT 1", ("routes", "fail"), "no table t on the target"),
    "nothing at all": ("SELECT 1", "SELECT 1", ("routes", "fail"), "nothing to replicate"),
    "column without a home": (
        "CREATE TABLE t (id int PRIMARY KEY, v text, extra int)",
        PLAIN,
        ("dropped_columns", "warn"),
        "t: extra of the source has no home",
    ),
    "type": (
        PLAIN,
        "CREATE TABLE t (id int PRIMARY KEY, v inet)",
        ("routes", "fail"),
        "column v",
    ),
    "enum label": (
        ENUM.format("'good', 'bad', 'ugly'", "mood"),
        ENUM.format("'bad'", "mood"),
        ("enum_labels", "fail"),
        "lacks good, ugly",
    ),
    "enum label in an array": (
        ENUM.format("'good', 'bad'", "mood[]"),
        ENUM.format("'bad'", "mood[]"),
        ("enum_labels", "fail"),
        "lacks good",
    ),
    "enum label behind a domain": (
        "CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE DOMAIN d AS mood; CREATE TABLE t (id int PRIMARY KEY, m d)",
        ENUM.format("'bad'", "mood"),
        ("enum_labels", "fail"),
        "lacks good",
    ),
    "generated": (
        "CREATE TABLE t (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) STORED)",
        "CREATE TABLE t (id int PRIMARY KEY, g int)",
        ("generated_columns", "warn"),
        "t.g is generated on the source",
    ),
    "sequence": (
        "CREATE TABLE t (id serial PRIMARY KEY)",
        "CREATE TABLE t (id int PRIMARY KEY)",
        ("sequences", "fail"),
        "t_id_seq",
    ),
    "sequence of its own": (PLAIN + "; CREATE SEQUENCE s", PLAIN, ("sequences", "warn"), "sequence s"),
    "foreign key to a stranger": (
        PLAIN,
        "CREATE TABLE o (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, v text, o int REFERENCES o)",
        ("foreign_keys", "warn"),
        "references o, which is not replicated",
    ),
    "trigger that always fires": (
        PLAIN,
        PLAIN + "; CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        " CREATE TRIGGER loud BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();"
        " CREATE TRIGGER quiet BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();"
        " ALTER TABLE t ENABLE ALWAYS TRIGGER loud",
        ("triggers", "warn"),
        "t: loud fires",
    ),
    "no index for the key": (
        PLAIN,
        "CREATE TABLE t (id int, v text)",
        ("key_index", "warn"),
        "(id)",
    ),
    "rows on the target": (PLAIN, PLAIN + "; INSERT INTO t VALUES (1)", ("empty_tables", "warn"), "t holds rows"),
    "inheritance": (
        PLAIN + "; CREATE TABLE u (PRIMARY KEY (id)) INHERITS (t)",
        PLAIN + "; CREATE TABLE u (PRIMARY KEY (id)) INHERITS (t)",
        ("inheritance", "fail"),
        "t has child tables",
    ),
    "large objects": (PLAIN + "; SELECT lo_create(0)", PLAIN, ("large_objects", "warn"), "large objects"),
    "publication of all tables": (
        PLAIN + "; CREATE PUBLICATION replicator FOR ALL TABLES",
        PLAIN,
        ("publication", "fail"),
        "publishes all tables",
    ),
    "publication of some operations": (
        PLAIN + "; CREATE PUBLICATION replicator FOR TABLE t WITH (publish = 'insert')",
        PLAIN,
        ("publication", "fail"),
        "leaves out some operations",
    ),
    "publication of partitions": (
        PLAIN + "; CREATE PUBLICATION replicator FOR TABLE t",
        PLAIN,
        ("publication", "fail"),
        "publish_via_partition_root is off",
    ),
    "publication of more": (
        PLAIN + "; CREATE SCHEMA o; CREATE TABLE o.u (id int);"
        " CREATE PUBLICATION replicator FOR TABLE t, o.u WITH (publish_via_partition_root = true)",
        PLAIN,
        ("publication", "fail"),
        "also publishes o.u",
    ),
    "publication of less": (
        PLAIN + "; CREATE PUBLICATION replicator WITH (publish_via_partition_root = true)",
        PLAIN,
        ("publication", "warn"),
        "does not publish t",
    ),
    "publication of some rows": (
        PLAIN + "; CREATE PUBLICATION replicator FOR TABLE t WHERE (id > 3) WITH (publish_via_partition_root = true)",
        PLAIN,
        ("publication", "fail"),
        "only some rows or columns of t",
    ),
}


@pytest.mark.parametrize("source, target, expected, words", PROVOKED.values(), ids=PROVOKED)
def test_a_fault_is_found_and_nothing_else(sides, source, target, expected, words):
    sides.source(source)
    sides.target(source if target is None else target)
    found = sides.check()
    assert found.bad() - {("collation", "warn")} == {expected}
    assert words in found.text(expected[0])
    assert all(check.remedy for check in found.named(expected[0]) if check.status.value != "pass")


def test_a_table_without_key_that_is_updated_is_a_failure(sides):
    """Once published, the source would refuse its own application's UPDATEs."""
    sides.both("CREATE TABLE t (v text)")
    sides.source("INSERT INTO t VALUES ('a'); UPDATE t SET v = 'b'")
    deadline = time.monotonic() + 10  # the statistics arrive a little later
    while "fail" not in (found := sides.check()).status("replica_identity"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "refuses its UPDATEs and DELETEs" in found.text("replica_identity")


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_an_extension_that_the_tables_build_on_is_missed(sides):
    available = sides.source("SELECT name FROM pg_available_extensions WHERE name IN ('citext', 'btree_gin', 'hstore')")
    if not available:
        pytest.skip("this server comes without extensions")
    [name, *_] = [name for (name,) in available]
    use = {
        "citext": "CREATE TABLE t (id int PRIMARY KEY, c text DEFAULT ('a'::citext)::text)",
        "hstore": "CREATE TABLE t (id int PRIMARY KEY, c text DEFAULT (''::hstore)::text)",
        "btree_gin": "CREATE TABLE t (id int PRIMARY KEY, c text); CREATE INDEX ON t USING gin (id)",
    }[name]
    sides.source(f"CREATE EXTENSION {name}; {use}")
    sides.target("CREATE TABLE t (id int PRIMARY KEY, c text)")
    found = sides.check()
    assert found.status("extensions") == {"warn"}
    assert name in found.text("extensions")


# ── roles ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_source_role_without_rights_is_told_each_of_them(sides, plain_role):
    sides.both("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)")
    dsn = plain_role("source")
    found = sides.check(source_dsn=dsn)
    role = str(psycopg.conninfo.conninfo_to_dict(dsn)["user"])
    assert found.status("role_replication") == {"fail"}
    assert f"ALTER ROLE {role} REPLICATION" in found.text("role_replication")
    assert found.status("role_bypassrls") == {"warn"}
    assert found.status("select") == {"fail"}
    assert found.status("publication") == {"fail"}
    assert "does not own t, u" in found.text("publication")
    assert found.status("freeze") == {"warn"}


def test_row_security_that_hides_rows_from_the_reader_is_a_failure(sides, plain_role):
    """Otherwise the snapshot would be empty without a word."""
    sides.both(PLAIN)
    dsn = plain_role("source", "REPLICATION")
    role = psycopg.conninfo.conninfo_to_dict(dsn)["user"]
    sides.source(f"ALTER TABLE t ENABLE ROW LEVEL SECURITY; GRANT SELECT ON t TO {role}")
    found = sides.check(source_dsn=dsn)
    assert found.status("row_security") == {"fail"}
    assert [check.table for check in found.named("row_security")] == [("public", "t")]
    sides.source(f"ALTER ROLE {role} BYPASSRLS")
    assert sides.check(source_dsn=dsn).named("row_security") == []


def test_a_target_role_without_rights_is_told_each_of_them(sides, plain_role):
    sides.both(PLAIN)
    sides.target("CREATE TABLE loud (id int PRIMARY KEY)")
    sides.target(
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        " CREATE TRIGGER usual BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()"
    )
    dsn = plain_role("target")
    role = psycopg.conninfo.conninfo_to_dict(dsn)["user"]
    sides.target(f"GRANT SELECT, INSERT ON t TO {role}")
    found = sides.check(target_dsn=dsn)
    assert found.status("privileges") == {"fail"}
    assert "lacks UPDATE, DELETE, TRUNCATE on t" in found.text("privileges")
    assert found.status("state_schema") == {"fail"}
    assert found.status("session_replication_role") == {"warn"}
    assert "t: usual fires" in found.text("triggers"), "triggers that cannot be silenced"
    assert found.status("ownership") == {"warn"}

    sides.target(f"GRANT ALL ON t TO {role}; CREATE SCHEMA replicator AUTHORIZATION {role}")
    sides.target("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    found = sides.check(target_dsn=dsn)
    assert found.status("state_schema") == {"pass"}
    assert "privileges" not in {name for name, status in found.bad() if status == "fail"}
    assert found.status("row_security") == {"fail"}


def test_a_schema_replicator_of_somebody_else_is_a_failure(sides, plain_role):
    sides.both(PLAIN)
    sides.target("CREATE SCHEMA replicator")
    found = sides.check(target_dsn=plain_role("target"))
    assert found.status("state_schema") == {"fail"}
    assert "belongs to another role" in found.text("state_schema")


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_roles_with_what_the_readme_lists_pass_every_check_and_suffice(pair, tmp_path, plain_role):
    """The README's section “Roles”, as it stands there, on a database of another owner."""
    text = (Path(__file__).parent.parent.parent / "README.md").read_text()
    section = text.split("### Roles")[1].split("### ")[0]
    dsns, owners = {}, []
    for side, dsn in (("source", pair.source_dsn), ("target", pair.target_dsn)):
        database = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
        dsns[side] = plain_role(side, *(("REPLICATION", "BYPASSRLS") if side == "source" else ()))
        role, owner = f"role_of_{database}", f"owner_of_{database}"
        owners.append((dsn, owner))
        execute(dsn, f"CREATE ROLE {owner}; ALTER DATABASE {database} OWNER TO {owner}; CREATE SCHEMA auth")
        execute(dsn, "CREATE TABLE auth.users (id uuid)")
        execute(dsn, f"SET ROLE {owner}; CREATE SCHEMA app; CREATE TABLE app.t (id serial PRIMARY KEY, v text)")
        listed = next(block for block in section.split("```sql")[1:] if block.strip().startswith(f"-- {side}"))
        for line in listed.split("```")[0].splitlines():
            statement = line.split("--")[0].strip()
            if statement.startswith("GRANT"):
                names = {"app_owner": owner, "TO replicator": f"TO {role}", "DATABASE app": f"DATABASE {database}"}
                for old, new in names.items():
                    statement = statement.replace(old, new)
                if "PARAMETER" not in statement or pair.target.major >= 15:
                    execute(dsn, statement)
    try:
        sides = Sides(pair.source_dsn, pair.target_dsn)
        sides.source("INSERT INTO app.t (v) VALUES ('a')")
        options = {"source_dsn": dsns["source"], "target_dsn": dsns["target"], "tables": ("app.t",)}
        assert sides.check(**options).bad() <= {("collation", "warn")}
        settings = sides.settings(**options)
        assert Case(settings.source.dsn, settings.target.dsn, settings).run()
        assert sides.target("SELECT v FROM app.t") == [("a",)]
        removed = teardown(settings)
        assert len(removed.removed) == 3
    finally:
        for dsn, owner in owners:
            execute(dsn, f"REASSIGN OWNED BY {owner} TO CURRENT_USER; DROP OWNED BY {owner}; DROP ROLE {owner}")
