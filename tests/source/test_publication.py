import psycopg
import pytest

from replicator.errors import SlotLost, StateError
from replicator.postgres.catalog import load_tables
from replicator.routing.route import Route
from replicator.source.publication import (
    drop_publication,
    ensure_publication,
    load_publication,
    require_publication,
)
from tests.conftest import ALL_MAJORS

TABLES = """
CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE child () INHERITS (a);
CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p_1 PARTITION OF p DEFAULT;
CREATE TABLE extra (id int PRIMARY KEY);
CREATE SCHEMA "Odd"; CREATE TABLE "Odd"."Table" (id int PRIMARY KEY);
"""
A, P, EXTRA, ODD = ("public", "a"), ("public", "p"), ("public", "extra"), ("Odd", "Table")


@pytest.fixture
def conn(database):
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(TABLES)
        yield conn


def routes(conn, *names):
    tables = load_tables(conn, names)
    return [Route(tables[name], tables[name], (), (), ()) for name in names]


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_it_publishes_these_tables_and_all_that_happens_to_them(conn):
    ensure_publication(conn, "pub", routes(conn, A, P, ODD))
    found = require_publication(conn, "pub", routes(conn, A, P, ODD))
    assert found.tables.keys() == {A, P, ODD}
    assert found.operations == {"insert", "update", "delete", "truncate"}
    assert found.via_root
    assert found.is_ours
    assert not found.all_tables
    assert found.narrowed == frozenset()


def test_ensuring_again_changes_nothing_and_adds_what_is_new(conn):
    ensure_publication(conn, "pub", routes(conn, A))
    before = load_publication(conn, "pub")
    ensure_publication(conn, "pub", routes(conn, A))
    assert load_publication(conn, "pub") == before
    ensure_publication(conn, "pub", routes(conn, A, P))
    after = load_publication(conn, "pub")
    assert before is not None
    assert after is not None
    assert after.oid == before.oid
    assert after.tables[A] == before.tables[A]
    assert after.tables.keys() == {A, P}


OTHERS = {
    "all tables": "FOR ALL TABLES",
    "not in the plan: extra": "FOR TABLE ONLY a, extra WITH (publish_via_partition_root = true)",
    "does not publish delete, truncate": "FOR TABLE ONLY a WITH (publish = 'insert, update')",
    "publish_via_partition_root": "FOR TABLE ONLY a",
}
SINCE_15 = {
    "row filter": "FOR TABLE ONLY a WHERE (id > 0) WITH (publish_via_partition_root = true)",
    "column list": "FOR TABLE ONLY a (id) WITH (publish_via_partition_root = true)",
    "whole schemas": "FOR TABLES IN SCHEMA public WITH (publish_via_partition_root = true)",
}


@pytest.mark.parametrize("fault, definition", (OTHERS | SINCE_15).items())
def test_a_publication_of_another_kind_is_refused(conn, fault, definition):
    if fault in SINCE_15 and conn.info.server_version < 150000:
        pytest.skip("needs a server 15")
    conn.execute(f"CREATE PUBLICATION pub {definition}")
    before = load_publication(conn, "pub")
    for demand in (ensure_publication, require_publication):
        with pytest.raises(StateError, match=fault):
            demand(conn, "pub", routes(conn, A))
    assert load_publication(conn, "pub") == before


def test_a_table_of_another_role_is_added_by_that_role(conn, database):
    ensure_publication(conn, "pub", routes(conn, A))
    try:
        conn.execute("CREATE ROLE publication_tester")
        conn.execute("SET ROLE publication_tester")
        ensure_publication(conn, "pub", routes(conn, A))
        with pytest.raises(StateError, match="lacks p and belongs to another role"):
            ensure_publication(conn, "pub", routes(conn, A, P))
        with pytest.raises(StateError, match="may not create publication"):
            ensure_publication(conn, "pub2", routes(conn, A))
    finally:
        conn.execute("RESET ROLE; DROP ROLE publication_tester")


def test_a_missing_table_is_an_error_unless_it_is_about_to_be_copied(conn):
    ensure_publication(conn, "pub", routes(conn, A))
    with pytest.raises(StateError, match="does not publish p") as caught:
        require_publication(conn, "pub", routes(conn, A, P))
    assert "--table p" in caught.value.hint
    require_publication(conn, "pub", routes(conn, A, P), may_lack=[P])


def entries(conn):
    found = load_publication(conn, "pub")
    assert found is not None
    return dict(found.tables)


def test_a_table_that_left_and_came_back_is_an_error(conn):
    """The server skips what was written meanwhile without a word."""
    ensure_publication(conn, "pub", routes(conn, A, P))
    known = entries(conn)
    require_publication(conn, "pub", routes(conn, A, P), published=known)
    conn.execute("ALTER PUBLICATION pub DROP TABLE p")
    conn.execute("ALTER PUBLICATION pub ADD TABLE p")
    with pytest.raises(StateError, match="did not publish for a while p") as caught:
        require_publication(conn, "pub", routes(conn, A, P), published=known)
    assert "--table p" in caught.value.hint
    require_publication(conn, "pub", routes(conn, A, P), published=known, may_lack=[P])
    require_publication(conn, "pub", routes(conn, A, P), published={A: known[A], P: None})


def test_a_publication_that_was_created_again_means_a_new_snapshot(conn):
    ensure_publication(conn, "pub", routes(conn, A, P))
    known = entries(conn)
    drop_publication(conn, "pub")
    ensure_publication(conn, "pub", routes(conn, A, P))
    with pytest.raises(SlotLost, match="dropped and created again") as caught:
        require_publication(conn, "pub", routes(conn, A, P), published=known)
    assert "teardown" in caught.value.hint


def test_setting_the_same_tables_again_is_no_gap(conn):
    ensure_publication(conn, "pub", routes(conn, A, P))
    known = entries(conn)
    conn.execute("ALTER PUBLICATION pub SET TABLE ONLY a, p")
    require_publication(conn, "pub", routes(conn, A, P), published=known)


def test_a_missing_publication_means_a_new_snapshot(conn):
    with pytest.raises(SlotLost, match="publication pub is gone") as caught:
        require_publication(conn, "pub", routes(conn, A))
    assert "teardown" in caught.value.hint


def test_dropping_leaves_nothing_and_may_be_repeated(conn):
    ensure_publication(conn, "pub", routes(conn, A))
    drop_publication(conn, "pub")
    drop_publication(conn, "pub")
    assert load_publication(conn, "pub") is None
