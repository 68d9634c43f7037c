"""Roles that may less than a superuser."""

import itertools
import os

import psycopg
import pytest

from replicator.errors import ConfigError, Refused, RowRejected
from tests.oracle import assert_same_freshtrack, assert_same_rows, assert_valid_foreign_keys
from tests.snapshot.case import freshtrack_case, simple_case

_NUMBER = itertools.count(1)


@pytest.fixture
def make_role(pair):
    """``make_role(server, dsn, *attributes)`` → the role's DSN; it is gone after the test."""
    made = []

    def make(server, dsn, *attributes):
        name = f"snapshot_tester_{os.getpid()}_{next(_NUMBER)}"
        server.create_role(name, *attributes)
        made.append((dsn, name))
        return name, server.dsn(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"], user=name)

    yield make
    for dsn, name in made:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [name])
            conn.execute(f"REASSIGN OWNED BY {name} TO postgres; DROP OWNED BY {name}; DROP ROLE {name}")


def reader(case, make_role, server, *attributes):
    name, dsn = make_role(server, case.source_dsn, "REPLICATION", *attributes)
    grants = (
        f"GRANT CREATE ON DATABASE {psycopg.conninfo.conninfo_to_dict(case.source_dsn)['dbname']} TO {name}",
        f"GRANT USAGE ON SCHEMA public TO {name}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}",
    )
    for grant in grants:
        case.execute("source", grant)
    # A publication takes the owner of its tables.
    tables = ", ".join(f"ONLY {table}" for table in case.settings.tables)
    case.execute("source", f"CREATE PUBLICATION replicator FOR TABLE {tables} WITH (publish_via_partition_root = true)")
    source = case.settings.source.model_copy(update={"dsn": dsn})
    case.settings = case.settings.model_copy(update={"source": source})


def test_a_role_that_bypasses_row_security_copies_everything(pair, make_role, tmp_path):
    case = freshtrack_case(pair.source_dsn, pair.target_dsn, tmp_path, 2_000)
    reader(case, make_role, pair.source, "BYPASSRLS")
    assert case.run()
    counts = assert_same_freshtrack(pair.source_dsn, pair.target_dsn, case.map_file)
    assert sum(counts.values()) > 1_500


def test_a_role_that_does_not_gets_an_error_and_not_an_empty_table(pair, make_role, tmp_path):
    case = freshtrack_case(pair.source_dsn, pair.target_dsn, tmp_path, 2_000)
    reader(case, make_role, pair.source)
    with pytest.raises(ConfigError, match="row-level security"):
        case.run()
    assert case.phase() in ("new", "copying")
    assert "copied" not in case.table_states().values()


TREE = """
CREATE TABLE z_root (id int PRIMARY KEY, parent int REFERENCES z_root);
CREATE TABLE b_branch (id int PRIMARY KEY, root_id int NOT NULL REFERENCES z_root);
CREATE TABLE a_leaf (id int PRIMARY KEY, branch_id int NOT NULL REFERENCES b_branch ON DELETE CASCADE);
"""


@pytest.fixture
def plain(pair, make_role):
    """A target role that owns its tables and is nothing else; names in the wrong order; big enough to be split."""
    case = simple_case(pair.source_dsn, pair.target_dsn, snapshot={"split_above": "64kB"})
    case.execute("source", TREE)
    case.execute(
        "source", "INSERT INTO z_root SELECT g, CASE WHEN g > 1 THEN 5001 - g END FROM generate_series(1, 5000) g"
    )
    case.execute("source", "INSERT INTO b_branch SELECT g, 5001 - g FROM generate_series(1, 5000) g")
    case.execute("source", "INSERT INTO a_leaf SELECT g, 5001 - g FROM generate_series(1, 5000) g")
    case.execute("source", "ANALYZE")
    name, dsn = make_role(pair.target, case.target_dsn)
    dbname = psycopg.conninfo.conninfo_to_dict(case.target_dsn)["dbname"]
    case.execute("target", f"ALTER DATABASE {dbname} OWNER TO {name}; ALTER SCHEMA public OWNER TO {name}")
    case.settings = case.settings.model_copy(update={"target": case.settings.target.model_copy(update={"dsn": dsn})})
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(TREE)
    return case


def assert_tree_equal(case):
    with psycopg.connect(case.source_dsn) as source, psycopg.connect(case.target_dsn) as target:
        assert [assert_same_rows(source, target, table) for table in ("z_root", "b_branch", "a_leaf")] == [5000] * 3
        assert assert_valid_foreign_keys(target) == 3


def test_dependency_order_satisfies_live_constraints(plain):
    assert plain.run()
    assert_tree_equal(plain)


def test_a_dangling_reference_is_named_by_its_constraint(plain):
    plain.execute("source", "SET session_replication_role = replica; DELETE FROM z_root WHERE id = 7")
    with pytest.raises(RowRejected, match=r"\(z_root_parent_fkey\)"):
        plain.run()


def test_half_copied_tables_are_emptied_within_live_constraints(plain):
    """The parent's rows go only together with those of its children, all of them ours."""
    plain.execute("target", "ALTER TABLE a_leaf ADD CONSTRAINT later CHECK (id < 4000)")
    with pytest.raises(RowRejected, match=r"\(later\)"):
        plain.run()
    assert plain.table_states() == {"z_root": "copied", "b_branch": "copied", "a_leaf": "copying"}
    plain.execute("target", "UPDATE replicator.table_state SET state = 'copying' WHERE table_name = 'b_branch'")
    plain.execute("target", "ALTER TABLE a_leaf DROP CONSTRAINT later")
    assert plain.run()
    assert_tree_equal(plain)


def test_keys_stay_where_triggers_fire(plain):
    """Their ON CONFLICT would miss them. Other indexes go, and come back."""
    plain.execute("source", "INSERT INTO a_leaf SELECT g, 1 FROM generate_series(5001, 12000) g")
    plain.execute("source", "ANALYZE")
    with psycopg.connect(plain.settings.target.dsn) as conn:
        conn.execute("""
            CREATE INDEX by_branch ON a_leaf (branch_id);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO public.a_leaf VALUES (NEW.id, NEW.branch_id) ON CONFLICT (id) DO NOTHING;
                RETURN NEW;
            END $$;
            CREATE TRIGGER note AFTER INSERT ON a_leaf FOR EACH ROW EXECUTE FUNCTION note()
        """)
    assert plain.run()
    rebuilt = plain.execute("target", "SELECT index_name, state FROM replicator.deferred_index")
    assert rebuilt == [("by_branch", "rebuilt")]


def test_rows_that_others_reference_are_not_deleted_from_under_them(plain):
    """ON DELETE CASCADE would carry the deletion into a table that nobody asked to copy again."""
    assert plain.run()
    with pytest.raises(Refused, match="rows of a_leaf reference them"):
        plain.recopy(["b_branch"])
    assert_tree_equal(plain)
    assert plain.recopy(["b_branch", "a_leaf"])
    assert_tree_equal(plain)
