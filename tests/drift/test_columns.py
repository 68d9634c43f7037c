"""Columns that come, go and change their names on one side, while the service runs and while it does not."""

from __future__ import annotations

import pytest

from tests.drift.moving import statement_of

T = "CREATE TABLE t (id int PRIMARY KEY, a text, b text);"
ROWS = "INSERT INTO t SELECT i, 'a' || i, 'b' || i FROM generate_series(1, 20) i;"
MORE = "INSERT INTO t (id, a) SELECT i, 'more' FROM generate_series({0}, {0} + 4) i"
BOTH_WAYS = pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])


@pytest.fixture
def case(moving):
    return moving(T, rows=ROWS)


@BOTH_WAYS
@pytest.mark.parametrize(
    "definition",
    ["text", "text DEFAULT 'x'", "text NOT NULL DEFAULT 'it''s'", "numeric(10,2) DEFAULT 1.5", "jsonb DEFAULT '{}'",
     "boolean DEFAULT true", "integer[] DEFAULT '{1,2}'"],
)  # fmt: skip
def test_an_added_column_is_named_with_the_statement_that_adds_it_to_the_target(case, definition, running):
    """No row is sent for what ADD COLUMN … DEFAULT does to the rows that are there."""
    if not running:
        case.stop()
    case.on_source(MORE.format(100))
    case.on_source(f"ALTER TABLE t ADD extra {definition}")
    case.on_source(MORE.format(200))
    error = case.ends("t: the source sends a column that the route does not know: extra")
    case.target.execute(statement_of(error))
    case.same("t")


def test_an_added_column_whose_default_differs_from_row_to_row_is_copied(case):
    case.on_source("ALTER TABLE t ADD extra uuid DEFAULT gen_random_uuid()", MORE.format(100))
    error = case.ends("ADD COLUMN extra uuid, and then `replicator snapshot --table t`")
    case.target.execute(statement_of(error))
    case.ends("extra was added on the source with a default that its older rows have", "snapshot --table t")
    case.copy("t")
    case.same("t")


def test_an_added_column_without_the_default_of_the_source_is_refused(case):
    """The rows from before would keep NULL on the target, and nobody would ever send the others."""
    case.on_source("ALTER TABLE t ADD extra text DEFAULT 'x'", MORE.format(100))
    case.ends("ADD COLUMN extra text DEFAULT 'x'")
    case.target.execute("ALTER TABLE t ADD extra text")
    error = case.ends("extra was added on the source with a default that its older rows have", "DROP COLUMN extra")
    case.target.execute("ALTER TABLE t DROP COLUMN extra; ALTER TABLE t ADD COLUMN extra text DEFAULT 'x'")
    assert "ADD COLUMN extra text DEFAULT 'x'" in error.hint
    case.same("t")


def test_a_default_that_came_later_is_for_new_rows_alone(case):
    case.on_source("ALTER TABLE t ADD extra text")
    case.on_source("ALTER TABLE t ALTER extra SET DEFAULT 'x'", MORE.format(100))
    error = case.ends("ADD COLUMN extra text; ALTER TABLE t ALTER COLUMN extra SET DEFAULT 'x'")
    case.target.execute(statement_of(error))
    case.same("t")


def test_a_column_of_the_target_first_then_of_the_source_is_taken_up(case):
    """As the README has it."""
    case.target.execute("ALTER TABLE t ADD extra text DEFAULT 'x'")
    case.on_source(MORE.format(100))
    case.drain()
    case.on_source("ALTER TABLE t ADD extra text DEFAULT 'x'", MORE.format(200))
    case.on_source("UPDATE t SET extra = 'y' WHERE id < 5")
    case.same("t")


def test_added_and_renamed_while_stopped(case):
    """The slot has rows with the column's first name, which neither side knows any more."""
    case.stop()
    case.on_source("ALTER TABLE t ADD extra text", "INSERT INTO t (id, extra) VALUES (100, 'first')")
    case.on_source("ALTER TABLE t RENAME extra TO other", "INSERT INTO t (id, other) VALUES (101, 'second')")
    error = case.ends("does not know: other", "ADD COLUMN other text")
    case.target.execute(statement_of(error))
    case.same("t")


@BOTH_WAYS
def test_renamed(case, running):
    if not running:
        case.stop()
    case.on_source("UPDATE t SET a = 'before' WHERE id = 1")
    case.on_source(MORE.format(100), "ALTER TABLE t RENAME a TO c", "UPDATE t SET c = 'in between' WHERE id = 101")
    case.on_source("INSERT INTO t (id, c) VALUES (200, 'after')")
    error = case.ends("column a of the source is called c now, the target's is still a")
    assert statement_of(error) == "ALTER TABLE t RENAME a TO c"
    case.target.execute(statement_of(error))
    case.same("t")


@BOTH_WAYS
def test_two_columns_change_names(case, running):
    """All names and types stay: by name, each would take the other's values from here on."""
    swap = "ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME x TO b"
    if not running:
        case.stop()
    case.on_source("UPDATE t SET a = 'before' WHERE id = 1")
    case.on_source(swap)
    case.on_source("INSERT INTO t (id, a, b) VALUES (200, 'after, was b', 'after, was a')")
    case.ends("t: column (a|b) of the source", "snapshot --table t")
    case.target.execute(swap)
    case.same("t")


@BOTH_WAYS
def test_dropped_on_the_source_alone(case, running):
    """Its last values stay on the target: told, and no reason to stop."""
    if not running:
        case.stop()
    case.on_source("UPDATE t SET b = 'last' WHERE id = 1")
    case.on_source(MORE.format(100), "ALTER TABLE t DROP b", "UPDATE t SET a = 'after' WHERE id = 101")
    case.same("t", columns=["id", "a"])
    assert "column b was dropped on the source; the target's column b keeps its last values" in case.notes()
    assert any("b was dropped on the source" in note for note in case.status().notes)
    case.target.execute("ALTER TABLE t DROP b")
    case.on_source(MORE.format(200))
    case.same("t")
    assert case.notes() == ""


@BOTH_WAYS
def test_dropped_and_added_again_on_the_source(case, running):
    """Its name, type and place among the names are the same; its old values are gone, and no row says so."""
    if not running:
        case.stop()
    case.on_source("ALTER TABLE t DROP b", "ALTER TABLE t ADD b text")
    case.ends("t: the source's column b is another one", "`replicator snapshot --table t`")
    case.copy("t")
    case.on_source("UPDATE t SET b = 'new' WHERE id = 1")
    case.same("t")


@BOTH_WAYS
@pytest.mark.parametrize("column", ["a", "b"])
def test_dropped_and_added_again_on_the_target(case, running, column):
    if not running:
        case.stop()
    case.target.execute(f"ALTER TABLE t DROP {column}; ALTER TABLE t ADD {column} text")
    case.on_source("INSERT INTO t VALUES (100, 'a', 'b')")
    case.ends(f"t: the target's column {column} was dropped and added again", "`replicator snapshot --table t`")
    case.copy("t")
    case.same("t")


def test_two_columns_of_the_target_change_names_under_the_running_service(case):
    """Rows travel by position: what is on its way would go astray without an error."""
    case.target.execute("ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME x TO b")
    case.on_source("INSERT INTO t VALUES (100, 'a', 'b')")
    case.ends("t: column (a|b) of the source went to column")
    assert case.target.execute("SELECT FROM t WHERE id = 100").fetchall() == []
    case.target.execute("ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME x TO b")
    case.same("t")


def test_a_home_for_a_column_that_had_none(moving):
    """Rows that were copied, or came, without it have no values there."""
    case = moving(T, "CREATE TABLE t (id int PRIMARY KEY, a text);", rows=ROWS)
    case.stop()
    case.target.execute("ALTER TABLE t ADD b text")
    case.ends("column b of the source had no home on the target when rows came, and has one now")
    case.copy("t")
    case.same("t")


def test_a_new_column_that_is_ignored(moving):
    case = moving(T, rows=ROWS, stream={"on_new_column": "ignore"})
    case.on_source("ALTER TABLE t ADD extra text", MORE.format(100))
    case.on_source("UPDATE t SET extra = 'ignored' WHERE id = 1")
    case.same("t")
    case.start()
    case.drain()
    case.stop()
    case.target.execute("ALTER TABLE t ADD extra text")
    case.ends("column extra of the source had no home on the target when rows came, and has one now")
    case.copy("t")
    case.same("t")


def test_not_null_on_the_target(case):
    case.target.execute("ALTER TABLE t ALTER a SET NOT NULL")
    case.on_source("INSERT INTO t VALUES (100, NULL, 'b')")
    case.ends(r"t refuses an insert \(a\): NotNullViolation")
    case.target.execute("ALTER TABLE t ALTER a DROP NOT NULL")
    case.same("t")


def test_a_unique_constraint_on_the_target(case):
    case.target.execute("ALTER TABLE t ADD CONSTRAINT only_one UNIQUE (a)")
    case.on_source("INSERT INTO t VALUES (100, 'a1', 'b')")
    case.ends(r"t refuses an insert \(only_one\): UniqueViolation")
    case.target.execute("ALTER TABLE t DROP CONSTRAINT only_one")
    case.same("t")


def test_a_generated_column_becomes_a_plain_one(moving):
    ddl = "CREATE TABLE t (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);"
    case = moving(ddl, rows="INSERT INTO t SELECT i, i FROM generate_series(1, 9) i;")
    case.on_source("ALTER TABLE t ALTER twice DROP EXPRESSION", "INSERT INTO t VALUES (20, 20, 7)")
    error = case.ends("does not know: twice")
    assert statement_of(error) == "ALTER TABLE t ALTER COLUMN twice DROP EXPRESSION"
    case.target.execute(statement_of(error))
    case.same("t")
