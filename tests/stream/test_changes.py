"""What happens to rows on the source happens to them on the target, on real servers."""

from __future__ import annotations

import psycopg
import pytest

from replicator.errors import RowRejected
from replicator.stream.applier import Applier
from tests.conftest import ALL_PAIRS
from tests.stream.case import replays

ITEM = """
CREATE TABLE item (id int PRIMARY KEY, name text, body text, other text);
ALTER TABLE item ALTER body SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
"""
BIG = "repeat('x', 5000)"


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_every_kind_of_change(make_case):
    case = make_case(ITEM + "CREATE TABLE log (line text); ALTER TABLE log REPLICA IDENTITY FULL;")
    case.start()
    case.execute("INSERT INTO item SELECT i, 'n' || i FROM generate_series(1, 250) i")
    case.execute("INSERT INTO log SELECT 'line ' || i % 3 FROM generate_series(1, 120) i")
    case.same("item", "log")
    case.execute("UPDATE item SET name = name || '!' WHERE id % 2 = 0", "DELETE FROM item WHERE id % 5 = 0")
    case.execute("UPDATE item SET id = id + 1000 WHERE id % 7 = 0")
    case.execute(
        "DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log)", "UPDATE log SET line = 'z' WHERE line = 'line 1'"
    )
    case.same("item", "log")
    case.execute("TRUNCATE log", "INSERT INTO log VALUES ('after'), (NULL)")
    case.same("item", "log")


def test_values_that_an_update_did_not_touch_stay(make_case):
    case = make_case(ITEM, seed=f"INSERT INTO item SELECT i, 'n', {BIG} || i, {BIG} FROM generate_series(1, 300) i")
    case.execute("UPDATE item SET name = 'a'")
    case.execute("UPDATE item SET name = NULL, other = 'short' WHERE id < 10")
    case.execute("UPDATE item SET body = NULL WHERE id = 5")
    case.same("item")


def test_two_updates_of_one_row_in_a_batch_leave_untouched_values_alone(make_case):
    """The second update's row lacks what the first one changed only if the first one lacks it too."""
    case = make_case(ITEM, seed=f"INSERT INTO item SELECT i, 'n', {BIG}, {BIG} FROM generate_series(1, 6) i")
    case.execute(
        "UPDATE item SET name = 'a' WHERE id = 1",
        "UPDATE item SET other = 'b' WHERE id = 1",
        "UPDATE item SET other = repeat('y', 6000) WHERE id = 2",
        "UPDATE item SET name = 'c' WHERE id = 2",
        "UPDATE item SET name = 'd' WHERE id = 3",
        "DELETE FROM item WHERE id = 3",
        f"INSERT INTO item VALUES (3, 'again', NULL, {BIG} || 'z')",
        "UPDATE item SET name = 'e' WHERE id = 3",
        f"INSERT INTO item VALUES (7, 'new', {BIG}, {BIG})",
        "UPDATE item SET name = 'newer' WHERE id = 7",
    )
    before = replays()
    case.same("item")
    assert replays() == before


@pytest.mark.parametrize("known", [True, False])
def test_a_key_changes(make_case, known):
    """With untouched values in the row, and with none (`known`: an earlier change of the batch brought them)."""
    case = make_case(ITEM, seed=f"INSERT INTO item SELECT i, 'n' || i, {BIG} || i, 'o' FROM generate_series(1, 9) i")
    first = ["UPDATE item SET body = repeat('y', 7000) || id"] if known else []
    case.execute(
        *first,
        "UPDATE item SET id = 11 WHERE id = 1",
        "UPDATE item SET id = 12, name = 'x' WHERE id = 2",
        "UPDATE item SET name = 'later' WHERE id = 12",
        "UPDATE item SET id = 13, body = NULL WHERE id = 3",
        "INSERT INTO item VALUES (3, 'reused')",
        "UPDATE item SET id = 0 WHERE id = 4",
        "UPDATE item SET id = 4 WHERE id = 5",
        "UPDATE item SET id = 5 WHERE id = 0",
    )
    case.same("item")


def test_unique_values_swapped_between_rows_collide_only_once(make_case):
    """As a set the updates collide; from then on the applier deletes and inserts the rows of that table."""
    case = make_case(
        "CREATE TABLE seat (id int PRIMARY KEY, place int UNIQUE, note text);"
        "CREATE TABLE visit (id int PRIMARY KEY, seat int REFERENCES seat, n int);",
        seed="INSERT INTO seat SELECT i, i FROM generate_series(1, 4) i; INSERT INTO visit VALUES (1, 1, 0);",
    )
    case.start()
    before = replays()
    for _ in range(2):
        case.execute(
            "UPDATE seat SET place = -1 WHERE id = 1",
            "UPDATE seat SET place = 1 WHERE id = 2",
            "UPDATE seat SET place = 2 WHERE id = 1",
            "UPDATE visit SET n = n + 1",
            "INSERT INTO visit SELECT max(id) + 1, 2, 0 FROM visit",
            "DELETE FROM visit WHERE id = (SELECT min(id) FROM visit WHERE n > 1)",
        )
        case.same("seat", "visit")
        case.execute("UPDATE seat SET place = place + 10 WHERE id = 1", "UPDATE seat SET place = 2 WHERE id = 1",
                     "UPDATE seat SET place = 99 WHERE id = 2", "UPDATE seat SET place = 1 WHERE id = 2")  # fmt: skip
        case.execute("UPDATE seat SET place = 0 WHERE id = 1", "UPDATE seat SET place = 2 WHERE id = 2",
                     "UPDATE seat SET place = 1 WHERE id = 1")  # fmt: skip
        case.same("seat", "visit")
    assert replays() == before + 1


def test_a_large_replay_is_right_wherever_its_conflicts_lie(make_case):
    case = make_case(
        "CREATE TABLE seat (id int PRIMARY KEY, place int UNIQUE);",
        seed="INSERT INTO seat SELECT i, i FROM generate_series(1, 1000) i;",
    )
    before = replays()
    case.execute(
        "UPDATE seat SET place = -place",
        "UPDATE seat SET place = 1001 + place",
        "DELETE FROM seat WHERE id BETWEEN 300 AND 310",
        "INSERT INTO seat SELECT id + 5000, place + 5000 FROM seat WHERE id > 900",
    )
    case.same("seat")
    assert replays() == before + 1


def test_duplicates_without_a_key_are_changed_one_by_one(make_case):
    case = make_case(
        "CREATE TABLE log (a int, b float8, c jsonb, d text, e numeric, f int[]);"
        "ALTER TABLE log ALTER d SET STORAGE EXTERNAL; ALTER TABLE log REPLICA IDENTITY FULL;",
        seed=f"INSERT INTO log SELECT i % 2, 'NaN', '{{\"k\": 1.0}}', {BIG}, 1.0, '{{1,NULL}}'"
        " FROM generate_series(1, 6) i;"
        "INSERT INTO log SELECT NULL FROM generate_series(1, 3); INSERT INTO log (b) VALUES ('-0'), ('0');",
    )
    case.execute("DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log)")
    case.execute("UPDATE log SET a = 7 WHERE ctid = (SELECT max(ctid) FROM log WHERE a = 1)")
    case.execute("DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log WHERE b IS NULL)")
    case.execute("UPDATE log SET e = 1.00 WHERE a = 0", "DELETE FROM log WHERE b::text = '-0'")
    case.execute("INSERT INTO log (a) VALUES (8), (8)", "UPDATE log SET d = 'x' WHERE a = 8")
    case.same("log")


def test_a_narrowed_value_without_a_key_is_found_again(make_case):
    """The old row has the source's precision, the stored one the target's."""
    ddl = (
        "CREATE TABLE log (at timestamptz({}), n numeric(12,{}), v varchar(20)); ALTER TABLE log REPLICA IDENTITY FULL;"
    )
    case = make_case(ddl.format(6, 6), ddl.format(3, 2))
    case.execute("INSERT INTO log VALUES ('2024-01-01 00:00:00.123456', 1.234567, 'a'), ('2024-01-01', 2, 'b')")
    case.execute("UPDATE log SET v = 'c' WHERE v = 'a'", "DELETE FROM log WHERE v = 'b'")
    case.same("log", source_columns={"at": "s.at::timestamptz(3)", "n": "s.n::numeric(12,2)"})


def test_a_deferrable_key_identifies_no_row(make_case):
    """Within a transaction two rows may share it: changes by key would reach the wrong one."""
    case = make_case(
        "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text); ALTER TABLE t REPLICA IDENTITY FULL;",
        seed="INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c');",
    )
    case.execute("UPDATE t SET id = id + 1", "DELETE FROM t WHERE id = 3")
    case.same("t")


def test_replica_identity_by_index_and_full_with_a_key(make_case):
    case = make_case(
        "CREATE TABLE tag (name text NOT NULL, kind int NOT NULL, note text, UNIQUE (kind, name));"
        "ALTER TABLE tag REPLICA IDENTITY USING INDEX tag_kind_name_key;"
        "CREATE TABLE whole (b int, a int, note text, PRIMARY KEY (a, b)); ALTER TABLE whole REPLICA IDENTITY FULL;",
        seed=f"INSERT INTO tag SELECT 'n' || i, i % 2, {BIG} FROM generate_series(1, 9) i;"
        f"INSERT INTO whole SELECT i, 0, {BIG} FROM generate_series(1, 9) i;",
    )
    case.execute("UPDATE tag SET note = NULL WHERE name = 'n1'", "UPDATE tag SET kind = 5 WHERE name = 'n2'")
    case.execute("UPDATE whole SET note = 'x' WHERE b = 1", "UPDATE whole SET a = 1 WHERE b = 2")
    case.execute("DELETE FROM tag WHERE name = 'n3'", "DELETE FROM whole WHERE b = 3")
    case.same("tag", "whole")


def test_composite_keys_in_another_order_than_the_columns(make_case):
    case = make_case(
        "CREATE TABLE t (a int, b uuid, c text, d date, PRIMARY KEY (d, b, a));",
        "CREATE TABLE t (d date, c text, b uuid, a int, PRIMARY KEY (a, b, d));",
        seed="INSERT INTO t (a, b, c, d) SELECT i, md5(i::text)::uuid, 'c', '2024-01-01' FROM generate_series(1, 9) i;",
    )
    case.execute("UPDATE t SET c = 'x' WHERE a < 4", "UPDATE t SET d = '2024-02-02' WHERE a = 4")
    case.execute("DELETE FROM t WHERE a = 5", "UPDATE t SET a = 50, c = NULL WHERE a = 6")
    case.same("t")


def test_truncate_of_several_tables_cascade_and_restart(make_case):
    case = make_case(
        "CREATE TABLE a (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY);"
        "CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);"
        "CREATE TABLE c (id int PRIMARY KEY, b int REFERENCES b);"
        "CREATE TABLE other (id serial PRIMARY KEY);",
        seed="INSERT INTO a SELECT FROM generate_series(1, 5); INSERT INTO b VALUES (1, 1);"
        "INSERT INTO c VALUES (1, 1);"
        "INSERT INTO other SELECT FROM generate_series(1, 3);",
    )
    case.execute("INSERT INTO c VALUES (2, 1)", "TRUNCATE a RESTART IDENTITY CASCADE", "INSERT INTO a DEFAULT VALUES")
    case.same("a", "b", "c", "other")
    assert case.rows("SELECT nextval('a_id_seq')") == [(1,)]
    case.execute("INSERT INTO b VALUES (7, 1)", "TRUNCATE c, other", "INSERT INTO other DEFAULT VALUES")
    case.execute("TRUNCATE b, c")
    case.same("a", "b", "c", "other")
    assert case.rows("SELECT nextval('other_id_seq')") == [(4,)]


def test_rolled_back_subtransactions_leave_nothing(make_case):
    case = make_case(ITEM)
    with case.source.transaction():
        case.source.execute("INSERT INTO item VALUES (1, 'kept')")
        for i in range(2, 6):
            case.source.execute(f"SAVEPOINT s{i}")
            case.source.execute(f"INSERT INTO item VALUES ({i}, 'maybe')")
            case.source.execute("UPDATE item SET name = name || '.' WHERE id = 1")
            case.source.execute(f"{'ROLLBACK TO' if i % 2 else 'RELEASE'} SAVEPOINT s{i}")
    with case.source.transaction(force_rollback=True):
        case.source.execute("INSERT INTO item VALUES (100)")
    case.same("item")


def test_empty_transactions_move_the_position(make_case):
    case = make_case(ITEM + "CREATE TABLE apart (id int);", tables=["item"])
    case.drain()
    before = case.checkpoint().applied_lsn
    for i in range(20):
        case.execute(f"INSERT INTO apart VALUES ({i})")
    lsn = case.source_lsn()
    case.wait(lambda: case.checkpoint().applied_lsn >= lsn, "the position")
    assert before < lsn
    case.wait(lambda: case.checkpoint().phase == "streaming", "the phase")


def test_deferred_constraints_and_cycles(make_case):
    case = make_case(
        "CREATE TABLE a (id int PRIMARY KEY, b int NOT NULL); CREATE TABLE b (id int PRIMARY KEY, a int NOT NULL);"
        "ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b DEFERRABLE INITIALLY DEFERRED;"
        "ALTER TABLE b ADD FOREIGN KEY (a) REFERENCES a DEFERRABLE INITIALLY DEFERRED;"
        "CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree ON DELETE CASCADE);"
    )
    case.execute("INSERT INTO a VALUES (1, 10), (2, 20)", "INSERT INTO b VALUES (10, 1), (20, 2)",
                 "INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2), (4, 1)")  # fmt: skip
    case.execute("DELETE FROM b WHERE id = 10", "DELETE FROM a WHERE id = 1", "UPDATE tree SET parent = 2 WHERE id = 4")
    case.execute("DELETE FROM tree WHERE id = 2")
    case.same("a", "b", "tree")


@pytest.mark.parametrize("partitioned", ["source", "target", "both"])
def test_partitioned_tables(make_case, partitioned):
    plain = "CREATE TABLE r (id int, at date NOT NULL, v text, PRIMARY KEY (id, at));"
    parts = plain[:-1] + " PARTITION BY RANGE (at);" + "".join(
        f"CREATE TABLE r{y} PARTITION OF r FOR VALUES FROM ('{y}-01-01') TO ('{y + 1}-01-01');" for y in (2023, 2024)
    ) + "CREATE TABLE rd PARTITION OF r DEFAULT;"  # fmt: skip
    case = make_case(
        plain if partitioned == "target" else parts,
        plain if partitioned == "source" else parts,
        seed="INSERT INTO r SELECT i, date '2022-06-01' + i * 100, 'v' FROM generate_series(1, 12) i;",
    )
    case.execute("UPDATE r SET v = 'x' WHERE id < 5", "UPDATE r SET at = at + 365 WHERE id = 3")
    case.execute(
        "INSERT INTO r SELECT i, '2024-03-03', 'w' FROM generate_series(100, 300) i", "DELETE FROM r WHERE id = 7"
    )
    case.same("r")
    case.execute("TRUNCATE r", "INSERT INTO r VALUES (1, '2023-05-05')")
    case.same("r")


def test_a_wider_key_on_the_target(make_case):
    """The source's key (id) identifies rows of a target that is partitioned on a column outside of it."""
    case = make_case(
        "CREATE TABLE r (id int PRIMARY KEY, at date NOT NULL, v int);",
        "CREATE TABLE r (id int, at date NOT NULL, v int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
        "CREATE TABLE r1 PARTITION OF r FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');"
        "CREATE TABLE rd PARTITION OF r DEFAULT;",
    )
    case.execute("INSERT INTO r SELECT i, date '2023-12-20' + i, i FROM generate_series(1, 30) i")
    case.execute(
        "UPDATE r SET at = at + 12 WHERE id < 4", "UPDATE r SET v = 0 WHERE id > 20", "DELETE FROM r WHERE id = 9"
    )
    case.execute("UPDATE r SET id = id + 100 WHERE id = 10")
    case.same("r")


def test_generated_and_identity_columns(make_case):
    case = make_case(
        "CREATE TABLE g (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2)"
        " STORED, serial int GENERATED ALWAYS AS IDENTITY);",
        seed="INSERT INTO g (n) SELECT generate_series(1, 5);",
    )
    case.execute("INSERT INTO g (n) SELECT generate_series(6, 200)", "UPDATE g SET n = n + 1 WHERE id < 5")
    case.execute(
        "DELETE FROM g WHERE id = 3", "INSERT INTO g (id, n, serial) OVERRIDING SYSTEM VALUE VALUES (3, 33, 333)"
    )
    case.execute("INSERT INTO g (n) VALUES (0)")
    case.same("g")


def test_a_new_identity_value_is_never_dropped(make_case):
    """UPDATE … SET id = DEFAULT is the one way to change such a column; the target has none to set a given value."""
    case = make_case(
        "CREATE TABLE g (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int);",
        seed="INSERT INTO g (n) SELECT generate_series(1, 5);",
    )
    case.execute("UPDATE g SET id = DEFAULT WHERE id = 2")
    case.same("g")


def test_a_new_value_of_an_identity_column_beside_the_key_stops_the_stream(make_case):
    """No UPDATE of the target can set it: rather that than another value there."""
    case = make_case(
        "CREATE TABLE g (id int PRIMARY KEY, n int, serial int GENERATED ALWAYS AS IDENTITY);",
        seed="INSERT INTO g VALUES (1), (2);",
    )
    case.execute("UPDATE g SET serial = DEFAULT WHERE id = 1")
    assert "g hit 0 rows instead of 1" in case.fails(RowRejected).message


def test_extra_target_columns_get_and_keep_their_values(make_case):
    case = make_case(
        "CREATE TABLE t (id int PRIMARY KEY, v int, gone text);",
        "CREATE TABLE t (extra text DEFAULT 'default', id int PRIMARY KEY, v int, note text);",
        seed="INSERT INTO t (id, v) SELECT i, i FROM generate_series(1, 5) i;",
    )
    case.target.execute("UPDATE t SET note = 'ours', extra = 'ours'")
    case.execute(
        "UPDATE t SET v = 0 WHERE id = 1", "UPDATE t SET id = 20 WHERE id = 2", "INSERT INTO t VALUES (6, 6, 'x')"
    )
    case.execute("DELETE FROM t WHERE id = 3", "INSERT INTO t VALUES (3, 33)")
    case.same("t", columns=["id", "v"])
    assert case.rows("SELECT id, extra, note FROM t ORDER BY id") == [
        (1, "ours", "ours"), (3, "default", None), (4, "ours", "ours"), (5, "ours", "ours"), (6, "default", None),
        (20, "ours", "ours"),
    ]  # fmt: skip


def test_renamed_tables_and_columns(make_case):
    case = make_case(
        "CREATE TABLE old_name (id int PRIMARY KEY, was text, stays int);",
        "CREATE SCHEMA app; CREATE TABLE app.new_name (stays int, now text, key int PRIMARY KEY);",
        tables=["app.new_name"],
        routes={"app.new_name": {"source": "old_name", "columns": {"key": "id", "now": "was"}}},
    )
    case.execute("INSERT INTO old_name VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)")
    case.execute("UPDATE old_name SET was = 'x' WHERE id = 1", "UPDATE old_name SET id = 9 WHERE id = 2",
                 "DELETE FROM old_name WHERE id = 3")  # fmt: skip
    case.same("old_name", target_table="app.new_name", source_columns={"key": "s.id", "now": "s.was"})


def test_two_transactions_that_overlap_arrive_in_commit_order(make_case):
    case = make_case(ITEM, seed="INSERT INTO item VALUES (1, 'a'), (2, 'b');")
    dsn = case.pair.source_dsn
    with case.one_batch(), psycopg.connect(dsn) as first, psycopg.connect(dsn) as second:
        first.execute("UPDATE item SET name = 'first' WHERE id = 1")
        second.execute("UPDATE item SET name = 'second' WHERE id = 2")
        second.commit()
        first.execute("UPDATE item SET name = name || ' then first' WHERE id = 2")
        first.commit()
    case.same("item")


def test_a_partition_truncated_by_its_own_name_stays_full(make_case):
    """PostgreSQL does not send it where a table is published as a whole; the README says so."""
    case = make_case(
        "CREATE TABLE r (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE r1 PARTITION OF r FOR VALUES IN (1);"
        "CREATE TABLE rd PARTITION OF r DEFAULT;",
        seed="INSERT INTO r VALUES (1), (2);",
    )
    case.execute("TRUNCATE r1", "DELETE FROM r WHERE id = 2")
    case.drain()
    assert case.rows("SELECT id FROM r") == [(1,)]


def test_the_next_batch_is_made_ready_while_the_server_works_on_one(make_case, monkeypatch):
    """Whatever becomes of the one: here of many each row takes over a unique value of its neighbour's."""
    ready = []
    look_ahead = Applier._look_ahead

    def watched(self):
        look_ahead(self)
        upcoming = self._upcoming()
        ready.append(upcoming is not None and upcoming.segments is not None)

    monkeypatch.setattr(Applier, "_look_ahead", watched)
    case = make_case(
        "CREATE TABLE item (id int PRIMARY KEY, place int UNIQUE DEFERRABLE, name text)", stream={"max_batch_rows": 500}
    )
    case.execute("INSERT INTO item SELECT i, i, 'n' FROM generate_series(1, 6000) i")
    case.execute("UPDATE item SET place = place - 1 + id % 2 * 2, name = 'moved'")
    case.execute("INSERT INTO item SELECT i, i + 1, 'late' FROM generate_series(7000, 9000) i")
    case.execute("DELETE FROM item WHERE id % 10 = 0", "UPDATE item SET place = -place")
    case.same("item")
    assert any(ready)
