"""Tables that are renamed, moved, swapped, dropped, made anew; keys and identities; partitions; new tables."""

from __future__ import annotations

import pytest

from replicator.preflight import load_plan, run_checks
from tests.drift.moving import Moving
from tests.oracle import assert_same_rows

T = "CREATE TABLE t (id int PRIMARY KEY, v text);"
BOTH = T + "CREATE TABLE u (id int PRIMARY KEY, v text);"
ROWS = "INSERT INTO t SELECT i, 't' || i FROM generate_series(1, 20) i;"
BOTH_ROWS = ROWS + "INSERT INTO u SELECT i, 'u' || i FROM generate_series(1, 20) i;"
SWAP = "ALTER TABLE t RENAME TO x; ALTER TABLE u RENAME TO t; ALTER TABLE x RENAME TO u"
BOTH_WAYS = pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
EITHER_SETTINGS = pytest.mark.parametrize("named", [True, False], ids=["tables named", "all tables"])


def write(case: Moving, table: str = "t", first: int = 100) -> None:
    case.on_source(f"INSERT INTO {table} (id) SELECT generate_series({first}, {first} + 4)",
                   f"DELETE FROM {table} WHERE id = {first - 97}")  # fmt: skip


@BOTH_WAYS
@EITHER_SETTINGS
def test_renamed(moving, running, named):
    """Rows from before have the old name in the slot: they are the same table's."""
    case = moving(T, rows=ROWS, **({"tables": ["t"]} if named else {}))
    if not running:
        case.stop()
    write(case)
    case.on_source(
        "INSERT INTO t VALUES (300, 'before')", "ALTER TABLE t RENAME TO u", "UPDATE u SET v = 'x' WHERE id = 9"
    )
    write(case, "u", 110)
    case.ends("source's table is called public.u now, the target's public.t", "ALTER TABLE t RENAME TO u on the target")
    case.target.execute("ALTER TABLE t RENAME TO u")
    if named:
        case.given["tables"] = ["u"]
    case.same("u")


def test_renamed_and_routed(moving):
    case = moving(T, rows=ROWS, tables=["t"])
    case.on_source("ALTER TABLE t RENAME TO u")
    write(case, "u")
    case.ends("say so in the settings: ")
    case.given |= {"tables": ["t"], "routes": {"t": {"source": "u"}}}
    case.same("u", target_table="t")


def test_renamed_and_back(moving):
    """Nobody has to do anything: afterwards it is what it was."""
    case = moving(T, rows=ROWS)
    case.stop()
    case.on_source("ALTER TABLE t RENAME TO u", "INSERT INTO u VALUES (100, 'as u')")
    case.on_source("ALTER TABLE u RENAME TO t", "INSERT INTO t VALUES (101, 'as t')")
    case.same("t")


@BOTH_WAYS
def test_two_tables_change_names(moving, running):
    case = moving(BOTH, rows=BOTH_ROWS)
    if not running:
        case.stop()
    write(case)
    case.on_source(SWAP)
    write(case, "t", 110)
    write(case, "u", 120)
    case.ends("t: the source's table is another one", "u: the source's table is another one", "snapshot --table t")
    case.copy("t", "u")
    case.same("t", "u")


def test_two_tables_of_the_target_change_names(moving):
    case = moving(BOTH, rows=BOTH_ROWS)
    case.target.execute(SWAP)
    write(case)
    case.ends("t: the target's table is another one than the rows were copied into")
    case.target.execute(SWAP)
    case.same("t", "u")


@BOTH_WAYS
def test_renamed_on_the_target(moving, running):
    case = moving(T, rows=ROWS, tables=["t"])
    if not running:
        case.stop()
    case.target.execute("ALTER TABLE t RENAME TO u")
    write(case)
    case.ends("the source's table is called public.t now, the target's public.u: one of them was renamed")
    case.target.execute("ALTER TABLE u RENAME TO t")
    case.same("t")


@BOTH_WAYS
def test_moved_to_another_schema(moving, running):
    case = moving(T + "CREATE SCHEMA app;", rows=ROWS, tables=["t"])
    if not running:
        case.stop()
    write(case)
    case.on_source("ALTER TABLE t SET SCHEMA app")
    write(case, "app.t", 110)
    case.ends("called app.t now, the target's public.t", "ALTER TABLE t SET SCHEMA app on the target")
    case.target.execute("ALTER TABLE t SET SCHEMA app")
    case.given["tables"] = ["app.t"]
    case.same("app.t")


@BOTH_WAYS
def test_dropped_and_created_again(moving, running):
    """The old rows are gone without a DELETE, and the new table is not published."""
    case = moving(BOTH, rows=BOTH_ROWS)
    if not running:
        case.stop()
    write(case)
    case.on_source("DROP TABLE t", T, "INSERT INTO t VALUES (1, 'new')")
    write(case, "u")
    case.ends("t: the source's table is another one than the rows were copied from", "`replicator snapshot --table t`")
    case.copy("t")
    case.on_source("INSERT INTO t VALUES (2, 'newer')")
    case.same("t", "u")


@BOTH_WAYS
@EITHER_SETTINGS
def test_dropped(moving, running, named):
    """Its last rows are in the slot, and no route takes them any more."""
    case = moving(BOTH, rows=BOTH_ROWS, **({"tables": ["t", "u"]} if named else {}))
    if not running:
        case.stop()
    write(case)
    case.on_source("DROP TABLE t")
    write(case, "u")
    if named:
        case.ends("t: the table was dropped on the source", "take t out of `tables`")
        case.given["tables"] = ["u"]
    case.same("u")
    if not named:
        assert "t: the table was dropped on the source; the target's keeps its last rows" in case.notes()
        case.target.execute("DROP TABLE t")
        assert case.notes() == ""


def test_dropped_on_the_target(moving):
    case = moving(BOTH, rows=BOTH_ROWS)
    case.stop()
    case.target.execute("DROP TABLE t")
    case.ends("t: the table was dropped on the target", "create it again, then `replicator snapshot --table t`")
    case.target.execute(T)
    case.copy("t")
    case.same("t", "u")


def test_taken_out_of_the_settings(moving):
    """What the slot still has of it is left out: whoever took it out meant that."""
    case = moving(BOTH, rows=BOTH_ROWS, tables=["t", "u"])
    case.stop()
    write(case, "u")
    case.given["tables"] = ["t"]
    case.ends("publishes tables that are not in the plan: u", "DROP TABLE")
    case.source.execute(f"ALTER PUBLICATION {case.slot} DROP TABLE u")
    write(case)
    case.same("t")


def test_a_new_table_is_told_and_left_out_until_it_is_added(moving):
    """Without `tables` in the settings all tables are meant, but a new one's rows would be missing on the target."""
    case = moving(T, rows=ROWS)
    case.on_source("CREATE TABLE fresh (id int PRIMARY KEY)", "INSERT INTO fresh VALUES (1)")
    write(case)
    case.drain()
    said = "table fresh is new on the source and is not replicated"
    assert said in case.status().problems
    case.stop()
    case.same("t")
    assert said in [fault.message for fault in load_plan(case.settings).faults]
    [check] = [check for check in run_checks(case.settings) if check.name == "new_tables"]
    assert (check.message, check.status.value) == (said, "fail")
    assert "snapshot --table fresh" in check.remedy
    case.target.execute("CREATE TABLE fresh (id int PRIMARY KEY)")
    case.copy("fresh")
    case.on_source("INSERT INTO fresh VALUES (2)")
    case.same("t", "fresh")
    assert said not in case.status().problems


def test_the_replica_identity_changes_in_the_middle_of_a_transaction(moving):
    case = moving("CREATE TABLE t (id int PRIMARY KEY, v text, other int NOT NULL);",
                  rows="INSERT INTO t SELECT i, 't', i FROM generate_series(1, 20) i;")  # fmt: skip
    case.source.execute("CREATE UNIQUE INDEX by_other ON t (other)")
    case.stop()
    for _ in range(2):
        case.on_source(
            "UPDATE t SET v = 'default' WHERE id = 1", "UPDATE t SET id = 31 WHERE id = 2",
            "ALTER TABLE t REPLICA IDENTITY FULL",
            "UPDATE t SET v = 'full' WHERE id = 3", "UPDATE t SET id = 32, other = 32 WHERE id = 4",
            "DELETE FROM t WHERE id = 5",
            "ALTER TABLE t REPLICA IDENTITY NOTHING", "INSERT INTO t VALUES (50, 'nothing', 50)",
            "ALTER TABLE t REPLICA IDENTITY USING INDEX by_other",
            "UPDATE t SET v = 'index' WHERE id = 7", "UPDATE t SET other = 60, id = 60 WHERE id = 8",
            "DELETE FROM t WHERE id = 9",
            "ALTER TABLE t REPLICA IDENTITY DEFAULT",
            "DELETE FROM t WHERE id = 10", "DELETE FROM t WHERE id IN (31, 32, 50, 60)",
            "INSERT INTO t SELECT i, 'again', i FROM (VALUES (2), (4), (5), (8), (9), (10)) AS n (i)",
        )  # fmt: skip
        case.same("t")
        case.start()
        case.drain()


@BOTH_WAYS
def test_the_primary_key_changes_and_goes(moving, running):
    case = moving("CREATE TABLE t (id int PRIMARY KEY, v text, other int NOT NULL);",
                  rows="INSERT INTO t SELECT i, 't', i + 100 FROM generate_series(1, 20) i;")  # fmt: skip
    if not running:
        case.stop()
    case.on_source("UPDATE t SET v = 'by id' WHERE id = 1", "ALTER TABLE t DROP CONSTRAINT t_pkey",
                   "ALTER TABLE t ADD PRIMARY KEY (other)", "UPDATE t SET v = 'by other' WHERE id = 2")  # fmt: skip
    case.on_source("UPDATE t SET other = 500 WHERE id = 3", "DELETE FROM t WHERE id = 4")
    case.on_source("ALTER TABLE t DROP CONSTRAINT t_pkey", "INSERT INTO t VALUES (100, 'no key', 1)")
    case.on_source(
        "ALTER TABLE t REPLICA IDENTITY FULL", "UPDATE t SET v = 'whole' WHERE id = 5", "DELETE FROM t WHERE id = 6"
    )
    case.same("t")


PARTED = """
    CREATE TABLE t (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
    CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (100);
    CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (100) TO (200);
"""
PARTED_ROWS = "INSERT INTO t SELECT i, 't' FROM generate_series(50, 150) i;"


def test_a_new_partition(moving):
    case = moving(PARTED, rows=PARTED_ROWS)
    case.on_source("CREATE TABLE t_3 PARTITION OF t FOR VALUES FROM (200) TO (300)")
    case.on_source("INSERT INTO t VALUES (200, 'x')")
    case.ends(r"t refuses an insert.*CheckViolation")
    case.target.execute("CREATE TABLE t_3 PARTITION OF t FOR VALUES FROM (200) TO (300)")
    case.same("t")
    assert case.survey().drifts == ()


def test_a_partition_that_had_rows_before_it_was_attached(moving):
    case = moving(PARTED, T, rows=PARTED_ROWS, tables=["t"])
    case.stop()
    case.on_source("CREATE TABLE t_3 (id int NOT NULL, v text)", "INSERT INTO t_3 VALUES (200, 'x')")
    case.on_source("ALTER TABLE t ATTACH PARTITION t_3 FOR VALUES FROM (200) TO (300)")
    case.ends("t: partition t_3 was attached on the source with rows in it", "snapshot --table t")
    case.copy("t")
    case.same("t")


@pytest.mark.parametrize("how", ["ALTER TABLE t DETACH PARTITION t_2", "DROP TABLE t_2"])
def test_a_partition_that_is_gone(moving, how):
    case = moving(PARTED, rows=PARTED_ROWS, tables=["t"])
    case.on_source("UPDATE t SET v = 'last' WHERE id > 90", how, "UPDATE t SET v = 'after' WHERE id < 70")
    case.drain()
    assert "partition t_2 was dropped or detached on the source: the target keeps its rows" in case.notes()
    case.target.execute(how)
    case.same("t")
    assert case.notes() == ""


def test_a_table_without_a_common_column(moving):
    case = moving(T, rows=ROWS, tables=["t"])
    case.stop()
    case.on_both("CREATE TABLE odd (a int)")
    case.target.execute("ALTER TABLE odd RENAME a TO b")
    case.given["tables"] = ["t", "odd"]
    case.ends("odd: source and target have no column in common")
    case.given["tables"] = ["t"]
    case.same("t")
    assert assert_same_rows(case.source, case.target, "t") > 0
