"""`on_rejected_row = "quarantine"`: refused rows wait, the rest goes on, and in the end both sides are equal."""

from __future__ import annotations

import pytest

from replicator.errors import RowRejected, SchemaMismatch
from replicator.target import quarantine
from tests.oracle import assert_same_rows

T = "CREATE TABLE t (id int PRIMARY KEY, v int);"
NARROW = "CREATE TABLE t (id int PRIMARY KEY, v int CHECK (v < 100));"
WIDEN = "ALTER TABLE t DROP CONSTRAINT t_v_check"


@pytest.fixture
def make_plain(make_tolerant, plain_role):
    """A tolerant case whose target role may not silence triggers and foreign keys."""

    def make(*args, **options):
        return make_tolerant(*args, target_role=plain_role, **options)

    return make


def held(case):
    """What waits: operation, key, error or None, in order."""
    found = quarantine.listed(case.target, case.slot)
    return [(each.op, *(each.key or {}).values(), each.error) for each in found]


def retry(case):
    """As `quarantine retry` does; returns how many still wait."""
    ids = [each.id for each in quarantine.listed(case.target, case.slot)]
    quarantine.request_retry(case.target, case.slot, ids)
    if case._thread is None:
        case.start()
    case.wait(lambda: not quarantine.requested(case.target, case.slot), "the retry")
    return quarantine.count(case.target, case.slot)


CHECKED = "CheckViolation 23514 (t_v_check)"


def test_a_refused_row_is_set_aside_and_the_rest_goes_on(make_tolerant):
    case = make_tolerant(T, NARROW)
    with case.one_batch():
        case.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 50) i")
        case.execute("INSERT INTO t VALUES (51, 500)", "INSERT INTO t VALUES (52, 1)")
        case.execute("UPDATE t SET v = v + 1 WHERE id = 7")
    assert held(case) == [("insert", "51", CHECKED)]
    assert case.rows("SELECT count(*), sum(v) FROM t") == [(51, 50 * 51 // 2 + 1 + 1)]
    case.target.execute(WIDEN)
    assert retry(case) == 0
    case.same("t")


def test_the_entry_has_the_lsn_of_its_own_transaction(make_tolerant):
    """A batch holds many transactions: the LSN is what an operator looks for in the source's WAL."""
    case = make_tolerant(T, NARROW)
    with case.one_batch():
        for i in range(5):
            case.execute(f"INSERT INTO t VALUES ({i}, {i})")
        before = case.source_lsn()
        case.execute("INSERT INTO t VALUES (10, 1000)", "INSERT INTO t VALUES (11, 1000)")
        after = case.source_lsn()
        for i in range(20, 25):
            case.execute(f"INSERT INTO t VALUES ({i}, 1)")
    found = quarantine.load(case.target, case.slot)
    assert len(found) == 2
    assert found[0].lsn == found[1].lsn
    assert before <= found[0].lsn < after


@pytest.mark.parametrize(
    "target, statement, error, mend",
    [
        (NARROW, "INSERT INTO t VALUES (9, 100)", CHECKED, WIDEN),
        (
            "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL);",
            "UPDATE t SET v = NULL WHERE id = 1",
            "NotNullViolation 23502 (v)",
            "ALTER TABLE t ALTER v DROP NOT NULL",
        ),
        (
            "CREATE TABLE t (id int PRIMARY KEY, v int UNIQUE);",
            "INSERT INTO t VALUES (9, 3)",
            "UniqueViolation 23505 (t_v_key)",
            "ALTER TABLE t DROP CONSTRAINT t_v_key",
        ),
        (
            T + "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.v = 9 THEN"
            " RAISE EXCEPTION 'secret %', new.v; END IF; RETURN new; END $$;"
            "CREATE TRIGGER f BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION f();"
            "ALTER TABLE t ENABLE ALWAYS TRIGGER f;",
            "INSERT INTO t VALUES (9, 9)",
            "RaiseException P0001 (public.f)",
            "DROP TRIGGER f ON t",
        ),
    ],
    ids=["check", "not null", "unique", "trigger"],
)
def test_what_refuses_a_row_is_told_by_name_and_mended(make_tolerant, target, statement, error, mend):
    case = make_tolerant(T, target, seed="INSERT INTO t VALUES (1, 1), (2, 2), (3, 3);")
    case.execute(statement, "INSERT INTO t VALUES (20, 20)")
    case.execute("UPDATE t SET v = 55 WHERE id = 2")
    case.drain()
    assert [each[-1] for each in held(case)] == [error]
    assert case.rows("SELECT v FROM t WHERE id IN (2, 20) ORDER BY id") == [(55,), (20,)]
    case.target.execute(mend)
    assert retry(case) == 0
    case.same("t")


def test_a_value_too_long(make_tolerant):
    case = make_tolerant(
        "CREATE TABLE t (id text PRIMARY KEY, v text);", "CREATE TABLE t (id text PRIMARY KEY, v varchar(5));"
    )
    case.execute("INSERT INTO t VALUES ('a', 'short'), ('b', 'too long'), ('c', 'ok')")
    case.drain()
    assert held(case) == [("insert", "b", "StringDataRightTruncation 22001")]
    case.target.execute("ALTER TABLE t ALTER v TYPE varchar(20)")
    assert retry(case) == 0
    case.same("t")


def test_a_row_too_large_for_an_index_of_the_target(make_tolerant):
    case = make_tolerant("CREATE TABLE t (id int PRIMARY KEY, v text);",
                         "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE INDEX wide ON t (v);")  # fmt: skip
    case.execute("INSERT INTO t SELECT 1, string_agg(md5(i::text), '') FROM generate_series(1, 1000) i",
                 "INSERT INTO t VALUES (2, 'x')")  # fmt: skip
    case.drain()
    assert held(case) == [("insert", "1", "ProgramLimitExceeded 54000")]
    case.target.execute("DROP INDEX wide")
    assert retry(case) == 0
    case.same("t")


def test_a_unique_value_of_a_row_that_only_the_target_has(make_tolerant):
    case = make_tolerant("CREATE TABLE t (id int PRIMARY KEY, v int UNIQUE);")
    case.target.execute("INSERT INTO t VALUES (900, 7)")
    case.execute("INSERT INTO t VALUES (1, 7), (2, 8)")
    case.drain()
    assert held(case) == [("insert", "1", "UniqueViolation 23505 (t_v_key)")]
    case.target.execute("DELETE FROM t WHERE id = 900")
    assert retry(case) == 0
    case.same("t")


def test_a_change_that_does_not_find_its_row(make_tolerant):
    case = make_tolerant(T, seed="INSERT INTO t SELECT i, 0 FROM generate_series(1, 5) i;")
    case.target.execute("DELETE FROM t WHERE id IN (2, 3)")
    case.execute("UPDATE t SET v = 1 WHERE id = 2", "DELETE FROM t WHERE id = 3", "UPDATE t SET v = 1 WHERE id = 4")
    case.drain()
    assert held(case) == [
        ("update", "2", "update on t hit 0 rows instead of 1"),
        ("delete", "3", "delete on t hit 0 rows instead of 1"),
    ]
    case.target.execute("INSERT INTO t VALUES (2, 0), (3, 0)")
    assert retry(case) == 0
    case.same("t")


def test_later_changes_of_the_row_wait_behind_it(make_tolerant):
    case = make_tolerant(T, NARROW)
    case.execute("INSERT INTO t VALUES (1, 100), (2, 2)")
    case.drain()
    case.execute("UPDATE t SET v = 101 WHERE id = 1", "UPDATE t SET v = 3 WHERE id = 2")
    case.execute("UPDATE t SET v = 102 WHERE id = 1")
    case.drain()
    assert held(case) == [("insert", "1", CHECKED), ("update", "1", None), ("update", "1", None)]
    first, second, third = quarantine.listed(case.target, case.slot)
    assert (first.waiting_behind, second.waiting_behind, third.waiting_behind) == (None, first.id, second.id)
    assert case.rows("TABLE t") == [(2, 3)]
    case.target.execute(WIDEN)
    assert retry(case) == 0
    case.same("t")


def test_a_later_change_that_mends_the_row_lets_a_retry_take_it(make_tolerant):
    """The net effect goes in, though its first change alone is still refused."""
    case = make_tolerant(T, NARROW)
    case.execute("INSERT INTO t VALUES (1, 100)")
    case.drain()
    case.execute("UPDATE t SET v = 5 WHERE id = 1")
    case.drain()
    assert len(held(case)) == 2
    assert retry(case) == 0
    case.same("t")


def test_in_one_batch_that_happens_by_itself(make_tolerant):
    """A set never sees what lies between; where another row makes the batch go one by one, the net effect decides."""
    case = make_tolerant(T, NARROW)
    with case.one_batch():
        case.execute("INSERT INTO t VALUES (1, 100), (2, 200)")
        case.execute("UPDATE t SET v = 5 WHERE id = 1")
        case.execute("INSERT INTO t VALUES (3, 300)")
        case.execute("DELETE FROM t WHERE id = 3")
    assert held(case) == [("insert", "2", CHECKED)]
    assert case.rows("TABLE t") == [(1, 5)]


def test_insert_delete_insert_behind_a_held_insert(make_tolerant):
    case = make_tolerant(T, NARROW)
    case.execute("INSERT INTO t VALUES (1, 100)")
    case.drain()
    case.execute("DELETE FROM t WHERE id = 1")
    case.drain()
    case.execute("INSERT INTO t VALUES (1, 7)", "INSERT INTO t VALUES (2, 7)")
    case.drain()
    assert [each[0] for each in held(case)] == ["insert", "delete", "insert"]
    assert case.rows("TABLE t") == [(2, 7)]
    assert retry(case) == 0
    case.same("t")


def test_a_delete_behind_a_held_insert_leaves_nothing(make_tolerant):
    case = make_tolerant(T, NARROW)
    case.execute("INSERT INTO t VALUES (1, 100)")
    case.drain()
    case.execute("DELETE FROM t WHERE id = 1")
    case.drain()
    assert len(held(case)) == 2
    assert retry(case) == 0
    case.same("t")


def test_key_changes_hold_both_keys(make_tolerant):
    case = make_tolerant(T, NARROW, seed="INSERT INTO t VALUES (1, 1), (2, 2), (3, 3);")
    case.execute("UPDATE t SET v = 100 WHERE id = 1")
    case.drain()
    case.execute("UPDATE t SET id = 10 WHERE id = 1")
    case.execute("UPDATE t SET id = 1 WHERE id = 2", "UPDATE t SET v = 33 WHERE id = 3")
    case.drain()
    case.execute("UPDATE t SET v = 50 WHERE id = 10")
    case.execute("INSERT INTO t VALUES (2, 22)", "DELETE FROM t WHERE id = 1")
    case.drain()
    assert [each[:2] for each in held(case)] == [
        ("update", "1"), ("update", "1"), ("update", "2"), ("update", "10"), ("insert", "2"), ("delete", "1"),
    ]  # fmt: skip
    assert case.rows("SELECT * FROM t ORDER BY id") == [(1, 1), (2, 2), (3, 33)]
    case.target.execute(WIDEN)
    assert retry(case) == 0
    case.same("t")


def test_a_key_change_onto_a_held_key(make_tolerant):
    """The held DELETE still has its row on the target: the key is taken there."""
    case = make_tolerant(
        T,
        T + "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
        "CREATE TRIGGER f BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION f(); ALTER TABLE t ENABLE ALWAYS TRIGGER f;",
        seed="INSERT INTO t VALUES (1, 1), (2, 2);",
    )
    with case.one_batch():
        case.execute(
            "DELETE FROM t WHERE id = 1", "UPDATE t SET id = 1 WHERE id = 2", "UPDATE t SET v = 9 WHERE id = 1"
        )
    assert [each[0] for each in held(case)] == ["delete", "update", "update"]
    assert case.rows("SELECT * FROM t ORDER BY id") == [(1, 1), (2, 2)]
    case.target.execute("DROP TRIGGER f ON t")
    assert retry(case) == 0
    case.same("t")


def test_a_table_without_a_key(make_tolerant):
    ddl = "CREATE TABLE t (a int, b text); ALTER TABLE t REPLICA IDENTITY FULL;"
    case = make_tolerant(ddl, "CREATE TABLE t (a int CHECK (a < 100), b text);",
                         seed="INSERT INTO t VALUES (1, 'x'), (1, 'x'), (2, NULL);")  # fmt: skip
    case.execute("INSERT INTO t VALUES (100, 'y'), (3, 'z')", "UPDATE t SET a = 200 WHERE a = 2")
    case.drain()
    case.execute(
        "UPDATE t SET b = 'yy' WHERE a = 100", "UPDATE t SET b = 'two' WHERE a = 200", "DELETE FROM t WHERE a = 3"
    )
    case.drain()
    assert [each[0] for each in held(case)] == ["insert", "update", "update", "update"]
    assert {each[1:3] for each in held(case)} == {("100", "y"), ("2", None), ("200", None)}
    case.target.execute("ALTER TABLE t DROP CONSTRAINT t_a_check")
    assert retry(case) == 0
    case.same("t")


def test_a_partitioned_target_without_a_partition_for_the_row(make_tolerant):
    case = make_tolerant(
        "CREATE TABLE t (id int PRIMARY KEY, day int NOT NULL);",
        "CREATE TABLE t (id int, day int NOT NULL, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10);",
    )
    case.execute("INSERT INTO t VALUES (1, 1), (2, 11), (3, 3)")
    case.execute("UPDATE t SET day = 12 WHERE id = 2", "UPDATE t SET day = 15 WHERE id = 3")
    case.drain()
    assert [each[:2] for each in held(case)] == [("insert", "2"), ("update", "2"), ("update", "3")]
    case.target.execute("CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20)")
    assert retry(case) == 0
    case.same("t")


def test_unchanged_toasted_values_wait_too(make_tolerant):
    ddl = "CREATE TABLE t (id int PRIMARY KEY, v int, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;"
    case = make_tolerant(ddl, ddl + "ALTER TABLE t ADD CONSTRAINT t_v_check CHECK (v < 100);",
                         seed="INSERT INTO t VALUES (1, 1, repeat('x', 5000));")  # fmt: skip
    case.execute("UPDATE t SET v = 100")
    case.drain()
    case.execute("UPDATE t SET v = 101")
    case.drain()
    case.target.execute(WIDEN)
    assert retry(case) == 0
    case.same("t")


def test_live_foreign_keys_hold_the_children_of_a_held_parent(make_plain):
    ddl = "CREATE TABLE p (id int PRIMARY KEY, v int); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p);"
    case = make_plain(ddl, ddl + "ALTER TABLE p ADD CHECK (v < 100);")
    with case.one_batch():
        case.execute("INSERT INTO p VALUES (1, 1), (2, 200)", "INSERT INTO c VALUES (1, 1), (2, 2)")
    assert held(case) == [
        ("insert", "2", "CheckViolation 23514 (p_v_check)"),
        ("insert", "2", "ForeignKeyViolation 23503 (c_p_fkey)"),
    ]
    case.target.execute("ALTER TABLE p DROP CONSTRAINT p_v_check")
    assert retry(case) == 0
    case.same("p", "c")


def test_a_restart_knows_what_waits(make_tolerant):
    case = make_tolerant(T, NARROW)
    case.execute("INSERT INTO t VALUES (1, 100)")
    case.drain()
    case.stop()
    case.execute("UPDATE t SET v = 1 WHERE id = 1", "INSERT INTO t VALUES (2, 2)")
    case.drain()
    assert [each[0] for each in held(case)] == ["insert", "update"]
    assert retry(case) == 0
    case.same("t")


def test_a_retry_asked_for_while_nothing_runs_is_done_at_the_next_start(make_tolerant):
    case = make_tolerant(T, NARROW)
    case.execute("INSERT INTO t VALUES (1, 100)")
    case.drain()
    case.stop()
    case.target.execute(WIDEN)
    assert retry(case) == 0
    case.same("t")


def test_a_retry_that_fails_again_says_why_and_counts(make_tolerant):
    case = make_tolerant(T, NARROW)
    case.execute("INSERT INTO t VALUES (1, 100), (2, 100)")
    case.drain()
    case.execute("UPDATE t SET v = 101 WHERE id = 1")
    case.drain()
    assert retry(case) == 3
    found = quarantine.listed(case.target, case.slot)
    assert [(each.attempts, each.error) for each in found] == [(2, CHECKED), (2, CHECKED), (0, None)]
    case.target.execute("ALTER TABLE t DROP CONSTRAINT t_v_check, ADD CONSTRAINT even CHECK (v % 2 = 0)")
    assert retry(case) == 1
    assert held(case) == [("update", "1", "CheckViolation 23514 (even)")]
    case.target.execute("ALTER TABLE t DROP CONSTRAINT even")
    assert retry(case) == 0
    case.same("t")


def test_a_dropped_change_is_gone_and_the_running_service_knows(make_tolerant):
    case = make_tolerant(T, NARROW, seed="INSERT INTO t VALUES (1, 1);")
    case.execute("UPDATE t SET v = 100")
    case.drain()
    quarantine.remove(case.target, [each.id for each in quarantine.listed(case.target, case.slot)])
    case.wait(lambda: case.stream._quarantine.count == 0, "the service to notice")
    case.execute("UPDATE t SET v = 6")
    case.same("t")


def test_truncate_makes_what_waits_moot(make_tolerant):
    case = make_tolerant(
        T + "CREATE TABLE u (id int PRIMARY KEY, v int);",
        NARROW + "CREATE TABLE u (id int PRIMARY KEY, v int CHECK (v < 100));",
    )
    case.execute("INSERT INTO t VALUES (1, 100)", "INSERT INTO u VALUES (1, 100)")
    case.drain()
    case.stop()
    with case.one_batch():
        case.execute("UPDATE t SET v = 101", "INSERT INTO t VALUES (2, 200)")
        case.execute("TRUNCATE t")
        case.execute("INSERT INTO t VALUES (1, 1), (3, 300), (4, 4)")
    assert held(case) == [("insert", "1", "CheckViolation 23514 (u_v_check)"), ("insert", "3", CHECKED)]
    assert case.rows("SELECT id FROM t ORDER BY id") == [(1,), (4,)]
    case.target.execute(WIDEN)
    case.target.execute("ALTER TABLE u DROP CONSTRAINT u_v_check")
    assert retry(case) == 0
    case.same("t", "u")


def test_more_than_the_limit_stops_the_stream_and_changes_nothing(make_tolerant):
    case = make_tolerant(T, NARROW, stream={"max_quarantined": 3})
    case.execute("INSERT INTO t VALUES (1, 100), (2, 100)")
    case.drain()
    case.execute("INSERT INTO t VALUES (5, 5), (3, 100), (4, 100)")
    error = case.fails(RowRejected)
    assert "more than 3 changes" in error.message
    assert len(held(case)) == 2
    assert case.rows("SELECT count(*) FROM t") == [(0,)]
    case.target.execute(WIDEN)
    assert retry(case) == 0
    case.same("t")


def test_changes_of_a_giant_transaction(make_tolerant):
    """It is applied in parts: what one part has set aside holds up the others."""
    case = make_tolerant(T, NARROW, stream={"max_batch_rows": 50})
    case.execute(
        "INSERT INTO t SELECT i, CASE WHEN i % 100 = 0 THEN 1000 ELSE 1 END FROM generate_series(1, 500) i",
        "UPDATE t SET v = v + 1 WHERE id % 50 = 0",
    )
    case.drain()
    assert len(held(case)) == 10
    assert case.rows("SELECT count(*) FROM t") == [(495,)]
    case.target.execute(WIDEN)
    assert retry(case) == 0
    case.same("t")


def test_what_is_nobodys_row_stops_the_stream_all_the_same(make_tolerant):
    case = make_tolerant(T)
    case.drain()
    case.target.execute("ALTER TABLE t DROP COLUMN v")
    case.execute("INSERT INTO t VALUES (1, 1)")
    case.fails(SchemaMismatch)
    assert held(case) == []


def test_without_the_policy_what_waits_still_holds_up_its_row(make_case, make_tolerant):
    case = make_tolerant(T, NARROW)
    case.execute("INSERT INTO t VALUES (1, 100)")
    case.drain()
    case.stop()
    case.settings = case.settings.model_copy(update={"stream": case.settings.stream.model_copy(
        update={"on_rejected_row": "stop"})})  # fmt: skip
    case.execute("UPDATE t SET v = 5 WHERE id = 1")
    case.drain()
    assert len(held(case)) == 2
    case.execute("INSERT INTO t VALUES (2, 200)")
    assert isinstance(case.fails(RowRejected), RowRejected)
    case.target.execute(WIDEN)
    assert retry(case) == 0
    case.same("t")


def test_a_column_of_another_type_is_not_misread(make_tolerant):
    """Four bytes of an integer would make a fine date."""
    case = make_tolerant(T, NARROW)
    case.execute("INSERT INTO t VALUES (1, 100)")
    case.drain()
    case.stop()
    case.execute("ALTER TABLE t ALTER v TYPE date USING '2020-01-01'")
    case.target.execute("ALTER TABLE t DROP CONSTRAINT t_v_check; ALTER TABLE t ALTER v TYPE date USING '2020-01-01'")
    assert retry(case) == 1
    assert held(case) == [("insert", "1", "column v has another type now")]


def test_columns_that_change_names_are_not_mixed_up(make_tolerant):
    """Both sides swap the names of two columns while a row waits: its values belong to columns, not to names."""
    ddl = "CREATE TABLE t (id int PRIMARY KEY, v int, w int);"
    case = make_tolerant(ddl, ddl + "ALTER TABLE t ADD CHECK (v < 100);")
    case.execute("INSERT INTO t VALUES (1, 100, 7)")
    case.drain()
    case.stop()
    for side in (case.source, case.target):
        side.execute("ALTER TABLE t RENAME v TO x; ALTER TABLE t RENAME w TO v; ALTER TABLE t RENAME x TO w")
    case.target.execute(WIDEN)
    assert retry(case) == 1
    assert held(case) == [("insert", "1", "column v of that time was dropped or renamed, or has no source any more")]


def test_columns_added_meanwhile_keep_their_default(make_tolerant):
    case = make_tolerant(T, NARROW)
    case.execute("INSERT INTO t VALUES (1, 100)")
    case.drain()
    case.stop()
    for side in (case.target, case.source):
        side.execute("ALTER TABLE t ADD w int DEFAULT 4")
    case.execute("UPDATE t SET w = 5 WHERE id = 1", "INSERT INTO t VALUES (2, 2, 2)")
    case.drain()
    assert len(held(case)) == 2
    case.target.execute(WIDEN)
    assert retry(case) == 0
    case.same("t")
    assert_same_rows(case.source, case.target, "t")


def test_a_key_that_the_target_cannot_even_read(make_tolerant):
    """A label that its enum does not have: there is nothing to show, but the change is kept whole."""
    ddl = "CREATE TYPE mood AS ENUM ('sad'{}); CREATE TABLE t (id mood PRIMARY KEY, v int);"
    case = make_tolerant(ddl.format(", 'glad'"), ddl.format(""))
    case.execute("INSERT INTO t VALUES ('sad', 1), ('glad', 2)")
    case.execute("UPDATE t SET v = v + 1")
    case.drain()
    found = quarantine.listed(case.target, case.slot)
    assert [(each.op, each.key) for each in found] == [("insert", None), ("update", None)]
    assert found[0].error == "InvalidTextRepresentation 22P02"
    case.target.execute("ALTER TYPE mood ADD VALUE 'glad'")
    assert retry(case) == 0
    case.same("t")


def test_rows_told_apart_by_other_columns_than_those_that_wait(make_tolerant):
    """Without a key the whole row is what later changes name, and it has a column more: no telling which waits."""
    ddl = "CREATE TABLE t (a int, b int); ALTER TABLE t REPLICA IDENTITY FULL;"
    case = make_tolerant(ddl, ddl + "ALTER TABLE t ADD CONSTRAINT low CHECK (a < 100);")
    case.execute("INSERT INTO t VALUES (100, 1), (1, 1)")
    case.drain()
    case.stop()
    for side in (case.target, case.source):
        side.execute("ALTER TABLE t ADD c int")
    case.execute("UPDATE t SET b = 2")
    error = case.fails(SchemaMismatch)
    assert "quarantine retry" in error.hint
    case.target.execute("ALTER TABLE t DROP CONSTRAINT low")
    assert retry(case) == 0
    case.same("t")


def test_a_child_that_a_cascade_of_the_target_took_with_its_parent(make_plain):
    """Its own DELETE waits behind a refused change; in the end there is nothing left to delete, and that is right."""
    ddl = """
        CREATE TABLE p (id int PRIMARY KEY);
        CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE, v int);
    """
    case = make_plain(
        ddl,
        ddl + "ALTER TABLE c ADD CHECK (v < 100);",
        seed="INSERT INTO p VALUES (1); INSERT INTO c VALUES (1, 1, 1);",
    )
    case.execute("UPDATE c SET v = 100")
    case.drain()
    case.execute("DELETE FROM p")
    case.drain()
    assert [each[0] for each in held(case)] == ["update", "delete"]
    assert retry(case) == 0
    case.same("p", "c")


REFERRED = """
    CREATE TABLE p (id int PRIMARY KEY, code text UNIQUE, v int);
    CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON UPDATE CASCADE ON DELETE CASCADE);
"""
CAPPED = "ALTER TABLE p ADD CONSTRAINT low CHECK (v < 100);"


def test_a_key_change_that_would_cascade_is_not_set_aside(make_plain):
    """Late, it would take along rows that have changed hands since."""
    case = make_plain(
        REFERRED,
        REFERRED + CAPPED,
        seed="INSERT INTO p (id, v) VALUES (1, 1), (7, 1); INSERT INTO c VALUES (1, 1)",
    )
    case.execute("UPDATE p SET v = 100 WHERE id = 1")
    case.drain()
    assert [each[0] for each in held(case)] == ["update"]
    case.execute("UPDATE p SET id = 2 WHERE id = 1", "UPDATE c SET p = 7")
    error = case.fails(RowRejected)
    assert "a change of p waits behind another one" in error.message and "c_p_fkey of c" in error.message
    case.target.execute("ALTER TABLE p DROP CONSTRAINT low")
    assert retry(case) == 0
    case.same("p", "c")


def test_a_refused_key_change_that_would_cascade_is_not_set_aside(make_plain):
    case = make_plain(
        REFERRED,
        REFERRED + "ALTER TABLE p ADD CONSTRAINT low CHECK (id < 100);",
        seed="INSERT INTO p (id, v) VALUES (1, 1), (7, 1); INSERT INTO c VALUES (1, 1)",
    )
    case.execute("UPDATE p SET id = 100 WHERE id = 1", "UPDATE c SET p = 7")
    error = case.fails(RowRejected)
    assert "is refused, CheckViolation 23514 (low), and cannot be set aside" in error.message
    assert held(case) == []
    case.target.execute("ALTER TABLE p DROP CONSTRAINT low")
    case.start()
    case.same("p", "c")


def test_other_updates_of_a_table_with_cascades_are_set_aside(make_plain):
    """Those that leave the referenced columns as they are; and without foreign keys that act all of them."""
    case = make_plain(
        REFERRED, REFERRED + CAPPED, seed="INSERT INTO p (id, v) VALUES (1, 1); INSERT INTO c VALUES (1, 1)"
    )
    case.execute("UPDATE p SET v = 100, code = 'x'")
    case.execute("UPDATE p SET v = 101")
    case.execute("UPDATE c SET id = 2")
    case.drain()
    assert [each[0] for each in held(case)] == ["update", "update"]
    case.target.execute("ALTER TABLE p DROP CONSTRAINT low")
    assert retry(case) == 0
    case.same("p", "c")


def test_a_key_change_is_set_aside_where_no_foreign_key_acts(make_tolerant):
    case = make_tolerant(
        REFERRED,
        REFERRED + CAPPED,
        seed="INSERT INTO p (id, v) VALUES (1, 1), (7, 1); INSERT INTO c VALUES (1, 1)",
    )
    case.execute("UPDATE p SET id = 2, v = 100 WHERE id = 1", "UPDATE c SET p = 7")
    case.drain()
    assert [each[0] for each in held(case)] == ["update"]
    case.target.execute("ALTER TABLE p DROP CONSTRAINT low")
    assert retry(case) == 0
    case.same("p", "c")


def test_a_referenced_column_beside_the_key_counts_as_changed(make_plain):
    """The stream does not bring its former value."""
    ddl = """
        CREATE TABLE p (id int PRIMARY KEY, code text UNIQUE, v int);
        CREATE TABLE c (id int PRIMARY KEY, p text REFERENCES p (code) ON UPDATE SET NULL);
    """
    case = make_plain(ddl, ddl + CAPPED, seed="INSERT INTO p VALUES (1, 'x', 1); INSERT INTO c VALUES (1, 'x')")
    case.execute("UPDATE p SET v = 100")
    assert "c_p_fkey of c" in case.fails(RowRejected).message


def test_a_row_that_came_back_is_not_deleted_alone(make_plain):
    """Its DELETE would cascade to rows that refer to what came back, which must go on waiting."""
    case = make_plain(REFERRED, REFERRED + CAPPED, seed="INSERT INTO p (id, v) VALUES (1, 1)")
    case.execute("UPDATE p SET v = 100")
    case.drain()
    case.execute("DELETE FROM p", "INSERT INTO p (id, v) VALUES (1, 200)", "INSERT INTO c VALUES (5, 1)")
    case.drain()
    assert [each[0] for each in held(case)] == ["update", "delete", "insert"]
    case.target.execute("ALTER TABLE p DROP CONSTRAINT low; ALTER TABLE p ADD CONSTRAINT low CHECK (v < 150);")
    assert retry(case) > 0
    assert case.rows("SELECT id, p FROM c") == [(5, 1)]
    case.target.execute("ALTER TABLE p DROP CONSTRAINT low")
    assert retry(case) == 0
    case.same("p", "c")


def test_what_fails_only_once_constraints_are_looked_at_in_front_of_a_truncate(make_plain):
    """It is set aside, and not the TRUNCATE, which cannot be."""
    ddl = """
        CREATE TABLE p (id int PRIMARY KEY);
        CREATE TABLE q (id int PRIMARY KEY, p int);
        CREATE TABLE r (id int PRIMARY KEY);
    """
    case = make_plain(
        ddl, ddl + "ALTER TABLE q ADD FOREIGN KEY (p) REFERENCES p DEFERRABLE;", seed="INSERT INTO r VALUES (1)"
    )
    with case.one_batch():
        for statement in (
            "INSERT INTO p VALUES (1)",
            "INSERT INTO q VALUES (1, 1), (2, 9)",
            "TRUNCATE r",
            "INSERT INTO r VALUES (2)",
        ):
            case.source.execute(statement)
    case.drain()
    assert [each[:2] for each in held(case)] == [("insert", "2")]
    case.same("p", "r")
    case.execute("INSERT INTO p VALUES (9)")
    case.drain()
    assert retry(case) == 0
    case.same("p", "q", "r")
