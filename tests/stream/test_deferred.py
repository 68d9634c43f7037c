"""Constraints that are looked at when the batch commits, which says nothing about the change that broke them."""

import pytest

from replicator import metrics
from replicator.errors import RowRejected
from replicator.target import quarantine
from tests.stream.test_quarantine import T, held, retry

PLAIN = "CREATE TABLE p (id int PRIMARY KEY, v int); CREATE TABLE c (id int PRIMARY KEY, p int);"
DEFERRED = """
CREATE TABLE p (id int PRIMARY KEY, v int);
CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p DEFERRABLE INITIALLY DEFERRED);
"""


def test_a_deferred_constraint_of_the_target_holds_the_change_at_fault_alone(make_tolerant, plain_role):
    case = make_tolerant(PLAIN, DEFERRED, target_role=plain_role)
    with case.one_batch():
        # Children first, as a deferred constraint allows.
        case.execute("INSERT INTO c VALUES (1, 1), (2, 2)", "INSERT INTO p VALUES (1, 1), (2, 2)")
        case.execute("INSERT INTO c VALUES (3, 3), (4, 2)", "INSERT INTO p VALUES (4, 4)")
        case.execute("INSERT INTO c VALUES (5, 4)")
    assert held(case) == [("insert", "3", "ForeignKeyViolation 23503 (c_p_fkey)")]
    assert case.rows("SELECT count(*) FROM c") == [(4,)]
    assert retry(case) == 1
    assert quarantine.listed(case.target, case.slot)[0].attempts == 2
    case.target.execute("ALTER TABLE c DROP CONSTRAINT c_p_fkey")
    assert retry(case) == 0
    case.same("p", "c")


def test_a_deferred_trigger_that_is_always_enabled_is_attributed_too(make_tolerant):
    """In every role; and what it raises is told by its function's name alone."""
    case = make_tolerant(
        T,
        T + "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.v >= 100 THEN"
        " RAISE EXCEPTION 'secret %', new.v USING CONSTRAINT = 'secret'; END IF; RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER f AFTER INSERT OR UPDATE ON t DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION f(); ALTER TABLE t ENABLE ALWAYS TRIGGER f;",
    )
    before = metrics.QUARANTINED_ROWS.labels(table="t")._value.get()
    with case.one_batch():
        case.execute("INSERT INTO t SELECT i, i FROM generate_series(1, 300) i WHERE i < 100 OR i > 299")
        case.execute("UPDATE t SET v = v + 1 WHERE id < 10 OR id = 300", "INSERT INTO t VALUES (400, 4)")
    assert held(case) == [("insert", "300", "RaiseException P0001 (public.f)"), ("update", "300", None)]
    assert case.rows("SELECT count(*) FROM t") == [(100,)]
    assert metrics.QUARANTINED_ROWS.labels(table="t")._value.get() == before + 2
    assert dict(case.rows("SELECT table_name, rows_applied FROM replicator.table_state"))["t"] <= 109
    case.target.execute("DROP TRIGGER f ON t")
    assert retry(case) == 0
    case.same("t")


def test_a_deferred_constraint_stops_the_stream_by_name_without_the_policy(make_case, plain_role):
    case = make_case(PLAIN, DEFERRED, target_role=plain_role)
    case.execute("INSERT INTO c VALUES (77777, 88888)")
    error = case.fails(RowRejected)
    assert "c refuses changes when they are to be committed (c_p_fkey)" in error.message
    assert "77777" not in repr(error) and "88888" not in repr(error)


def test_two_rows_that_need_each_other_are_not_held_for_it(make_tolerant, plain_role):
    ddl = "CREATE TABLE x (id int PRIMARY KEY, y int); CREATE TABLE y (id int PRIMARY KEY, x int, v int);"
    case = make_tolerant(
        ddl,
        ddl + "ALTER TABLE x ADD FOREIGN KEY (y) REFERENCES y DEFERRABLE INITIALLY DEFERRED;"
        "ALTER TABLE y ADD FOREIGN KEY (x) REFERENCES x DEFERRABLE INITIALLY DEFERRED, ADD CHECK (v < 100);",
        target_role=plain_role,
    )
    with case.one_batch():
        case.execute("INSERT INTO x VALUES (1, 1)", "INSERT INTO y VALUES (1, 1, 1)")
        case.execute("INSERT INTO y VALUES (2, NULL, 100)")
        case.execute("INSERT INTO x VALUES (3, 3)", "INSERT INTO y VALUES (3, 3, 3)")
    assert held(case) == [("insert", "2", "CheckViolation 23514 (y_v_check)")]


# Raises in every role; the foreign key of DEFERRED only where the role may not silence it.
ALWAYS = """
CREATE TABLE p (id int PRIMARY KEY, v int);
CREATE TABLE c (id int PRIMARY KEY, p int);
CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NOT EXISTS (SELECT FROM public.p WHERE id = new.p) THEN RAISE foreign_key_violation; END IF; RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER look AFTER INSERT OR UPDATE ON c DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION look();
ALTER TABLE c ENABLE ALWAYS TRIGGER look;
"""


@pytest.mark.parametrize("policy", ["stop", "quarantine"])
@pytest.mark.parametrize(
    "target, is_plain, told, mend",
    [
        (DEFERRED, True, "c refuses changes when they are to be committed (c_p_fkey)", "DROP CONSTRAINT c_p_fkey"),
        (ALWAYS, False, "refuses changes when they are to be committed (public.look)", "DISABLE TRIGGER look"),
    ],
    ids=["foreign key", "trigger"],
)  # fmt: skip
def test_at_the_end_of_a_transaction_in_parts_it_stops_the_stream_and_loses_nothing(
    make_case, plain_role, policy, target, is_plain, told, mend
):
    """With the quarantine too: the changes of the earlier parts are no longer at hand."""
    case = make_case(
        PLAIN, target, target_role=plain_role if is_plain else "",
        stream={"on_rejected_row": policy, "max_batch_rows": 50},
    )  # fmt: skip
    case.execute("INSERT INTO p VALUES (-1, 1)", "INSERT INTO c VALUES (-1, -1)")
    case.drain()
    before = case.checkpoint().applied_lsn
    case.execute(
        "INSERT INTO c SELECT n, n FROM generate_series(1, 400) n",  # children first, as a deferred constraint allows
        "INSERT INTO p SELECT n, n FROM generate_series(1, 399) n",
        "UPDATE p SET v = v + 1",
    )
    case.execute("UPDATE c SET p = NULL WHERE id = -1")
    for _ in range(2):  # a start alone cures nothing
        error = case.fails(RowRejected)
        assert told in error.message
        assert ("larger than a batch" in error.hint) == (policy == "quarantine")
        assert case.rows("SELECT (SELECT count(*) FROM p), (SELECT count(*) FROM c)") == [(1, 1)]
        assert held(case) == []
        assert before <= case.checkpoint().applied_lsn < case.source_lsn()
        assert case.confirmed_flush() <= case.checkpoint().applied_lsn
    case.target.execute(f"ALTER TABLE c {mend}")
    case.same("p", "c")


def test_a_transaction_in_parts_whose_deferred_constraints_hold_in_the_end_is_applied(make_case, plain_role):
    """They are broken between any two of its parts."""
    case = make_case(PLAIN, DEFERRED, target_role=plain_role, stream={"max_batch_rows": 50})
    case.execute(
        "INSERT INTO c SELECT n, n FROM generate_series(1, 400) n",
        "INSERT INTO p SELECT n FROM generate_series(1, 400) n",
    )
    case.execute("DELETE FROM p", "DELETE FROM c WHERE id > 100", "INSERT INTO p SELECT generate_series(1, 100)")
    case.same("p", "c")
