"""Random transactions against a target that refuses some of them: once it is mended, a retry makes both sides equal."""

from __future__ import annotations

import itertools
import secrets

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replicator.target import quarantine
from tests.oracle import assert_same_rows

DDL = """
CREATE TABLE t (id int PRIMARY KEY, v int, u int UNIQUE DEFERRABLE INITIALLY IMMEDIATE, big text);
CREATE TABLE c (id int PRIMARY KEY, t int REFERENCES t ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE k (a int, b int);
ALTER TABLE k REPLICA IDENTITY FULL;
ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
"""
REFUSE = """
ALTER TABLE t ADD CONSTRAINT low CHECK (v < 5) NOT VALID;
ALTER TABLE k ADD CONSTRAINT low CHECK (a < 5) NOT VALID;
"""
MEND = """
ALTER TABLE t DROP CONSTRAINT low; ALTER TABLE k DROP CONSTRAINT low; DELETE FROM t WHERE id >= 900;
"""
_NUMBER = itertools.count(1)
_TOKEN = secrets.token_hex(3)

KEY = st.integers(1, 4)
VALUE = st.integers(0, 7)  # from 5 on the target refuses it
BIG = st.sampled_from(["NULL", "repeat('x', 4000)", "repeat('y', 5000)"])
CHANGE = st.one_of(
    st.builds("INSERT INTO t SELECT {0}, {1}, {0}, {2} WHERE NOT EXISTS (SELECT FROM t WHERE {0} IN (id, u))".format,
              KEY, VALUE, BIG),
    st.builds("UPDATE t SET v = {1} WHERE id = {0}".format, KEY, VALUE),
    st.builds("UPDATE t SET v = v + 1".format),
    st.builds("UPDATE t SET v = {1}, big = {2} WHERE id = {0}".format, KEY, VALUE, BIG),
    st.builds("UPDATE t SET id = {1} WHERE id = {0} AND NOT EXISTS (SELECT FROM t WHERE id = {1})".format, KEY, KEY),
    st.builds("UPDATE t SET u = CASE u WHEN {0} THEN {1} ELSE {0} END WHERE u IN ({0}, {1})".format, KEY, KEY),
    st.builds("DELETE FROM t WHERE id = {0} AND NOT EXISTS (SELECT FROM c WHERE t = {0})".format, KEY),
    st.builds("INSERT INTO c SELECT {0}, id FROM t WHERE id = {1} ON CONFLICT DO NOTHING".format, KEY, KEY),
    st.builds("DELETE FROM c WHERE id = {0}".format, KEY),
    st.builds("INSERT INTO k VALUES ({0}, {1})".format, VALUE, KEY),
    st.builds("UPDATE k SET a = {0} WHERE ctid = (SELECT min(ctid) FROM k WHERE b = {1})".format, VALUE, KEY),
    st.builds("DELETE FROM k WHERE ctid = (SELECT min(ctid) FROM k WHERE b = {0})".format, KEY),
)  # fmt: skip
TRANSACTIONS = st.lists(st.lists(CHANGE, min_size=1, max_size=4), min_size=3, max_size=12)
# What happens between two transactions: nothing, time enough for a batch of their own, a restart, a retry too early.
BETWEEN = st.sampled_from(["", "", "", "drain", "drain", "drain", "restart", "retry"])
TRUNCATE = st.none() | st.tuples(st.integers(0, 11), st.sampled_from(["TRUNCATE t, c", "TRUNCATE k"]))
SEED = """
INSERT INTO t SELECT i, 1, i, repeat('z', 4000) FROM generate_series(1, 3) i;
INSERT INTO c VALUES (1, 1); INSERT INTO k SELECT 1, i FROM generate_series(1, 4) i;
"""


def retry(case) -> int:
    ids = [each.id for each in quarantine.listed(case.target, case.slot)]
    quarantine.request_retry(case.target, case.slot, ids)
    case.stream._next_tick = 0.0
    case.wait(lambda: not quarantine.requested(case.target, case.slot), "the retry")
    return quarantine.count(case.target, case.slot)


@pytest.mark.parametrize("plain", [False, True], ids=["replica role", "live constraints"])
def test_after_mending_and_a_retry_both_sides_are_equal(make_case, plain):
    role = f"plain_{_TOKEN}_{next(_NUMBER)}" if plain else ""
    case = make_case(DDL, stream={"on_rejected_row": "quarantine"}, target_role=role)
    case.drain()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(transactions=TRANSACTIONS, between=st.lists(BETWEEN, min_size=12, max_size=12), truncate=TRUNCATE)
    def run(transactions, between, truncate):
        case.execute("TRUNCATE t, c, k", SEED)
        case.drain()
        case.target.execute(REFUSE)
        # A row of the target's own that has a unique value; it refers to nothing that the source knows.
        case.target.execute("INSERT INTO t (id, u) VALUES (900, 4)")
        if truncate is not None:
            transactions[truncate[0] : truncate[0]] = [[truncate[1]]]
        if plain:
            # A key change that would have to wait stops the stream there: test_quarantine.py has that.
            transactions = [[each for each in some if not each.startswith("UPDATE t SET id")] for some in transactions]
        for statements, pause in zip(transactions, itertools.cycle(between), strict=False):
            if pause == "restart":
                case.stop()
                case.start()
            elif pause:
                case.drain()
            if pause == "retry":
                retry(case)
            case.execute(*statements)
        case.drain()
        case.target.execute(MEND)
        assert retry(case) == 0, quarantine.listed(case.target, case.slot)
        for table in ("t", "c", "k"):
            assert_same_rows(case.source, case.target, table)

    run()
