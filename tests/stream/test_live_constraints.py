"""A target role that may not silence triggers and foreign keys: order and cascades have to work out."""

from __future__ import annotations

import pytest

from replicator.errors import RowRejected
from replicator.postgres.connection import connect
from replicator.target.role import may_be_replica
from tests.oracle import assert_valid_foreign_keys

FAMILY = """
CREATE TABLE a (id int PRIMARY KEY, name text UNIQUE);
CREATE TABLE b (id int PRIMARY KEY, a int NOT NULL REFERENCES a ON DELETE CASCADE, v text);
CREATE TABLE c (
    id int PRIMARY KEY, b int REFERENCES b ON DELETE CASCADE, a int REFERENCES a ON DELETE SET NULL, v text
);
"""
SEED = """
INSERT INTO a SELECT i, 'n' || i FROM generate_series(1, 6) i;
INSERT INTO b SELECT i, i, 'v' FROM generate_series(1, 6) i;
INSERT INTO c SELECT i, i, 1 + i % 6, 'v' FROM generate_series(1, 6) i;
"""


@pytest.fixture
def make_plain(make_case, plain_role):
    """A case whose target tables belong to a role without any privilege of the server's."""

    def make(*args, **options):
        return make_case(*args, target_role=plain_role, **options)

    return make


def test_parents_first_and_children_first(make_plain):
    case = make_plain(FAMILY)
    with case.one_batch():
        case.execute("INSERT INTO a VALUES (1, 'x'), (2, 'y')", "INSERT INTO b VALUES (1, 1), (2, 2)",
                     "INSERT INTO c VALUES (1, 1, 2), (2, 2, 1)")  # fmt: skip
    with connect(case.settings.target.dsn, "target", purpose="test") as conn:
        assert not may_be_replica(conn)
    case.same("a", "b", "c")
    case.execute("DELETE FROM c WHERE id = 1", "DELETE FROM b WHERE id = 1", "DELETE FROM a WHERE id = 1")
    case.same("a", "b", "c")
    assert assert_valid_foreign_keys(case.target) == 3


def test_cascades_happen_once(make_plain):
    """The source's cascade is in the stream, and the target has one of its own: whichever comes first."""
    case = make_plain(FAMILY, seed=SEED)
    case.execute("DELETE FROM a WHERE id = 1")
    case.execute("UPDATE a SET name = 'swap' WHERE id = 2", "UPDATE a SET name = 'n2' WHERE id = 3",
                 "UPDATE a SET name = 'n3' WHERE id = 2", "DELETE FROM a WHERE id = 4")  # fmt: skip
    case.same("a", "b", "c")
    case.execute(
        "DELETE FROM a WHERE id = 5", "INSERT INTO a VALUES (5, 'again')", "INSERT INTO b VALUES (5, 5, 'again')"
    )
    case.same("a", "b", "c")
    assert_valid_foreign_keys(case.target)


@pytest.mark.parametrize("together", [True, False])
def test_a_child_that_moved_away_survives_its_old_parent(make_plain, together):
    """Set-wise, the parent's delete would come first and take the child along."""
    case = make_plain(FAMILY, seed=SEED)
    changes = [
        ["UPDATE b SET a = 2 WHERE id = 1", "INSERT INTO c VALUES (7, 1, 1, 'new')"],
        ["UPDATE c SET a = 3 WHERE a = 1"],
        ["DELETE FROM a WHERE id = 1"],
        ["INSERT INTO a VALUES (1, 'n1')"],
    ]
    if together:
        with case.one_batch():
            for statements in changes:
                case.execute(*statements)
    else:
        for statements in changes:
            case.execute(*statements)
    case.same("a", "b", "c")
    assert case.rows("SELECT count(*) FROM b") == [(6,)]
    assert_valid_foreign_keys(case.target)


def test_a_grandchild_whose_parent_moved_survives(make_plain):
    """No change of the grandchild's own is in the batch that could tell that a cascade took it."""
    case = make_plain(FAMILY, seed=SEED)
    with case.one_batch():
        case.execute("UPDATE b SET a = 2 WHERE id = 1")
        case.execute("UPDATE c SET a = NULL")
        case.execute("DELETE FROM a WHERE id = 1")
    case.same("a", "b", "c")
    assert case.rows("SELECT count(*) FROM c") == [(6,)]


def test_set_null_does_not_undo_a_later_reference(make_plain):
    case = make_plain(FAMILY, seed=SEED)
    with case.one_batch():
        case.execute("DELETE FROM a WHERE id = 2")
        case.execute("INSERT INTO a VALUES (2, 'n2')")
        case.execute("UPDATE c SET a = 2 WHERE id = 3")
    case.same("a", "b", "c")


def test_a_parent_replaced_in_one_batch(make_plain):
    case = make_plain(
        "CREATE TABLE p (id int PRIMARY KEY, code text UNIQUE NOT NULL);"
        "CREATE TABLE q (id int PRIMARY KEY, v int,"
        " code text REFERENCES p (code) ON UPDATE CASCADE ON DELETE CASCADE);",
        seed="INSERT INTO p VALUES (1, 'a'), (2, 'b'); INSERT INTO q VALUES (1, 1, 'a'), (2, 2, 'b');",
    )
    case.execute("UPDATE p SET code = 'aa' WHERE id = 1", "UPDATE q SET v = 9 WHERE id = 1")
    case.execute("UPDATE p SET id = 20 WHERE id = 2", "DELETE FROM p WHERE id = 1", "INSERT INTO p VALUES (1, 'a')")
    case.same("p", "q")


def test_key_changes_with_references(make_plain):
    case = make_plain(
        "CREATE TABLE p (id int PRIMARY KEY, v int);"
        "CREATE TABLE q (id int PRIMARY KEY, p int REFERENCES p ON UPDATE CASCADE ON DELETE CASCADE);",
        seed="INSERT INTO p SELECT generate_series(1, 4); INSERT INTO q SELECT i, i FROM generate_series(1, 4) i;",
    )
    case.execute("UPDATE p SET id = 10 WHERE id = 1", "UPDATE p SET id = 1 WHERE id = 2", "UPDATE p SET v = 5")
    case.same("p", "q")


def test_trees_and_cycles(make_plain):
    case = make_plain(
        "CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree ON DELETE CASCADE, v int);"
        "CREATE TABLE x (id int PRIMARY KEY, y int); CREATE TABLE y (id int PRIMARY KEY, x int REFERENCES x);"
        "ALTER TABLE x ADD FOREIGN KEY (y) REFERENCES y;"
    )
    with case.one_batch():
        case.execute("INSERT INTO tree SELECT i, nullif(i / 2, 0), 0 FROM generate_series(1, 200) i")
        case.execute(
            "INSERT INTO tree VALUES (500)", "UPDATE tree SET parent = 500 WHERE id = 3", "UPDATE tree SET v = 1"
        )
        case.execute("INSERT INTO x VALUES (1)", "INSERT INTO y VALUES (1, 1)", "UPDATE x SET y = 1")
    case.same("tree", "x", "y")
    case.execute("DELETE FROM tree WHERE id = 2", "UPDATE x SET y = NULL", "DELETE FROM y", "DELETE FROM x")
    case.same("tree", "x", "y")


def test_deferred_constraints(make_plain):
    case = make_plain(
        "CREATE TABLE p (id int PRIMARY KEY, place int UNIQUE DEFERRABLE INITIALLY DEFERRED);"
        "CREATE TABLE q (id int PRIMARY KEY, p int NOT NULL REFERENCES p DEFERRABLE INITIALLY DEFERRED);",
        seed="INSERT INTO p VALUES (1, 1), (2, 2);",
    )
    case.execute("INSERT INTO q VALUES (1, 9)", "INSERT INTO p VALUES (9, 9)")
    case.execute("UPDATE p SET place = 3 - place WHERE id < 3")
    case.execute("DELETE FROM p WHERE id = 9", "UPDATE q SET p = 1")
    case.same("p", "q")


def test_constraints_that_only_the_source_s_transaction_deferred(make_plain):
    """The changes one by one break them, and a batch of one row has no other way to apply."""
    case = make_plain(
        "CREATE TABLE p (id int PRIMARY KEY, place int UNIQUE DEFERRABLE);"
        "CREATE TABLE q (id int PRIMARY KEY, p int NOT NULL REFERENCES p DEFERRABLE);",
        seed="INSERT INTO p VALUES (1, 1), (2, 2);",
        stream={"max_batch_rows": 1},
    )
    case.execute("SET CONSTRAINTS ALL DEFERRED", "INSERT INTO q VALUES (1, 9)", "INSERT INTO p VALUES (9, 9)")
    case.execute("UPDATE p SET place = 3 - place WHERE id < 3")
    case.same("p", "q")


def test_truncate_of_referenced_tables(make_plain):
    case = make_plain(FAMILY, seed=SEED)
    case.execute("TRUNCATE a CASCADE", "INSERT INTO a VALUES (1, 'x')")
    case.same("a", "b", "c")


def test_truncate_behind_changes_whose_check_is_deferred(make_plain):
    """All in one batch: PostgreSQL truncates no table with checks that wait for the commit."""
    case = make_plain(
        "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE q (id int PRIMARY KEY, p int REFERENCES p DEFERRABLE);"
    )
    with case.one_batch():
        for statement in ("INSERT INTO p VALUES (1), (2)", "INSERT INTO q VALUES (1, 1)", "TRUNCATE q", "TRUNCATE q, p",
                          "INSERT INTO p VALUES (3)", "INSERT INTO q VALUES (3, 3)"):  # fmt: skip
            case.source.execute(statement)
    case.same("p", "q")


def test_a_row_that_breaks_a_live_constraint_stops_the_stream(make_plain):
    """The source has no such constraint."""
    case = make_plain(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int);",
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);",
    )
    case.execute("INSERT INTO a VALUES (1)", "INSERT INTO b VALUES (1, 1), (2, 7)")
    error = case.fails(RowRejected)
    assert "b refuses an insert (b_a_fkey)" in error.message
    assert case.rows("SELECT count(*) FROM a") == [(0,)]


def test_rows_without_a_key_that_the_target_has_changed_by_itself(make_plain):
    """Its own SET NULL or CASCADE comes before the stream's change, whose old row is no more."""
    case = make_plain(
        "CREATE TABLE p (id int PRIMARY KEY);"
        "CREATE TABLE n (p int REFERENCES p ON DELETE SET NULL, v text); ALTER TABLE n REPLICA IDENTITY FULL;"
        "CREATE TABLE u (p int REFERENCES p ON UPDATE CASCADE, v text); ALTER TABLE u REPLICA IDENTITY FULL;"
        "CREATE TABLE d (p int DEFAULT 9 REFERENCES p ON DELETE SET DEFAULT, v text);"
        "ALTER TABLE d REPLICA IDENTITY FULL;",
        seed="INSERT INTO p SELECT generate_series(1, 9);"
        "INSERT INTO n VALUES (1, 'a'), (1, 'a'), (2, 'a'), (NULL, 'a');"
        "INSERT INTO u VALUES (3, 'a'), (3, 'a'), (4, 'a');"
        "INSERT INTO d VALUES (5, 'a'), (9, 'a'), (6, 'a');",
    )
    case.execute("DELETE FROM p WHERE id = 1", "UPDATE p SET id = 30 WHERE id = 3", "DELETE FROM p WHERE id = 5")
    case.same("p", "n", "u", "d")
    case.execute("UPDATE n SET v = 'b' WHERE p IS NULL", "DELETE FROM p WHERE id IN (2, 6)", "UPDATE u SET v = 'c'")
    case.same("p", "n", "u", "d")


def test_a_key_that_the_target_has_changed_by_itself(make_plain):
    """ON UPDATE CASCADE reaches the key of the child, on the target too: the stream's old key is no more."""
    case = make_plain(
        "CREATE TABLE p (id int PRIMARY KEY);"
        "CREATE TABLE q (p int REFERENCES p ON UPDATE CASCADE, n int, v text, PRIMARY KEY (p, n));",
        seed="INSERT INTO p VALUES (1), (2); INSERT INTO q VALUES (1, 1, 'a'), (1, 2, 'b'), (2, 1, 'c');",
    )
    case.execute("UPDATE p SET id = 10 WHERE id = 1", "UPDATE q SET v = 'z' WHERE n = 1")
    case.execute("INSERT INTO p VALUES (1)", "UPDATE q SET p = 1 WHERE (p, n) = (10, 2)")
    case.same("p", "q")
