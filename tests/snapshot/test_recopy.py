"""Copy tables again beside a stream; tables that come later; what an interruption leaves."""

import psycopg
import pytest

from replicator import metrics
from replicator.errors import Refused, SlotLost, StateError
from replicator.model.lsn import Lsn
from tests.oracle import assert_same_rows
from tests.snapshot.case import simple_case

TABLES = """
CREATE TABLE person (id int PRIMARY KEY, login uuid, name text);
CREATE TABLE note (id int PRIMARY KEY, person_id int REFERENCES person ON DELETE CASCADE, author uuid, body text);
CREATE INDEX ON note (body);
"""
MAPS = {
    "author": {
        "kind": "lookup", "table": "person", "key": "login", "value": "login",
        "columns": ["note.author"], "on_unmapped": "null",
    }
}  # fmt: skip


@pytest.fixture
def case(pair):
    case = simple_case(pair.source_dsn, pair.target_dsn)
    case.execute("source", TABLES)
    case.execute("source", "INSERT INTO person SELECT g, md5(g::text)::uuid, 'p' FROM generate_series(1, 20) g")
    case.execute(
        "source",
        "INSERT INTO note SELECT g, 1 + g % 20, md5((1 + g % 20)::text)::uuid, 'n' FROM generate_series(1, 12000) g",
    )
    case.execute("source", "ANALYZE")
    case.execute("target", TABLES)
    return case


def lsns(case):
    rows = case.execute("target", "SELECT table_name, snapshot_lsn::text FROM replicator.table_state")
    return {name: Lsn.parse(lsn) for name, lsn in rows}


def count(case, table):
    return case.value("target", f"SELECT count(*) FROM {table}")


def test_a_table_is_copied_again_under_its_own_lsn(case):
    """Rows that reference it stay, though they would be deleted with it by live constraints."""
    assert case.run()
    before, indexes = lsns(case), case.indexes()
    case.execute("source", "UPDATE person SET name = 'renamed'; INSERT INTO note VALUES (20000, 1, NULL, 'late')")
    case.execute("target", "UPDATE replicator.checkpoint SET phase = 'streaming'")
    case.execute("target", "SET session_replication_role = replica; DELETE FROM person WHERE id > 10")
    assert case.recopy(["person"])
    assert case.phase() == "streaming"
    assert case.table_states() == {"person": "copied", "note": "copied"}
    assert lsns(case)["person"] > before["person"]
    assert lsns(case)["note"] == before["note"]
    assert case.execute("target", "SELECT count(*), min(name) FROM person") == [(20, "renamed")]
    assert count(case, "note") == 12_000
    assert case.indexes() == indexes
    assert case.value("source", "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == 1


def test_what_waits_in_quarantine_of_a_table_that_is_copied_again_is_moot(case):
    """But not what was committed behind its snapshot, nor what waits of other tables."""
    assert case.run()
    lsn = case.value("source", "SELECT pg_current_wal_lsn()::text")
    for table, at in (("person", "0/1"), ("person", lsn), ("person", "FFFF/0"), ("note", "0/1")):
        case.execute(
            "target",
            "INSERT INTO replicator.quarantine"
            " (slot, table_schema, table_name, op, columns, attnums, types, key_columns, lsn)"
            " VALUES (%s, 'public', %s, 'delete', '{}', '{}', '{}', '{}', %s)", case.slot, table, at,
        )  # fmt: skip
    case.execute("source", "INSERT INTO person VALUES (21)")
    assert case.recopy(["person"])
    left = case.execute("target", "SELECT table_name, lsn::text FROM replicator.quarantine ORDER BY id")
    assert left == [("person", "FFFF/0"), ("note", "0/1")]


def test_a_big_table_is_copied_again_with_its_indexes_deferred_and_back(case):
    assert case.run()
    indexes = case.indexes()
    case.execute("source", "DELETE FROM note WHERE id <= 1000")
    assert case.recopy(["note"])
    assert count(case, "note") == 11_000
    assert case.indexes() == indexes
    rebuilt = case.execute("target", "SELECT index_name, state FROM replicator.deferred_index ORDER BY 1")
    assert rebuilt == [("note_body_idx", "rebuilt"), ("note_pkey", "rebuilt")]


def test_a_failure_in_between_leaves_the_table_marked_and_the_next_call_mends_it(case):
    assert case.run()
    indexes = case.indexes()
    case.execute("source", "INSERT INTO note VALUES (20000, 1, NULL, repeat('x', 3000))")
    case.execute("target", "ALTER TABLE note ADD CHECK (length(body) < 100) NOT VALID")
    with pytest.raises(Exception, match="check constraint"):
        case.recopy(["note"])
    assert case.table_states()["note"] == "copying"
    assert count(case, "note") == 0
    case.execute("source", "DELETE FROM note WHERE id = 20000")
    assert case.recopy(["note"])
    assert count(case, "note") == 12_000
    assert case.indexes() == indexes


def with_tables(case, *tables, **changes):
    case.settings = case.settings.model_copy(update={"tables": tables, **changes})


def test_a_table_added_later_is_published_before_it_is_copied(case):
    with_tables(case, "person")
    assert case.run()
    with_tables(case, "person", "note")
    case.execute("target", "INSERT INTO note VALUES (1, NULL, NULL, 'theirs')")
    with pytest.raises(Refused, match="note"):
        case.recopy(["note"])
    assert case.recopy(["note"], truncate=True)
    assert count(case, "note") == 12_000
    published = case.execute("source", "SELECT tablename FROM pg_publication_tables ORDER BY 1")
    assert published == [("note",), ("person",)]


def test_rows_copied_later_are_mapped_as_of_their_own_snapshot(case):
    """While the stored lookup stays as of the slot's consistent point: from there on the stream follows it."""
    from replicator.config import IdMapSettings

    maps = {"author": IdMapSettings(**MAPS["author"])}
    case.settings = case.settings.model_copy(update={"id_maps": maps})
    assert case.run(exclude=[("public", "note")]) is False
    case.execute("source", "DELETE FROM note WHERE person_id = 3; DELETE FROM person WHERE id = 3")
    case.execute("source", "INSERT INTO person VALUES (21, md5('21')::uuid, 'new')")
    case.execute("source", "INSERT INTO note VALUES (20000, 21, md5('21')::uuid, 'n'), (20001, 1, md5('3')::uuid, 'n')")
    before = metrics.UNMAPPED_IDS.labels(map="author")._value.get()
    assert case.run()
    assert case.execute("target", "SELECT author = md5('21')::uuid FROM note WHERE id = 20000") == [(True,)]
    assert case.execute("target", "SELECT author FROM note WHERE id = 20001") == [(None,)]
    assert metrics.UNMAPPED_IDS.labels(map="author")._value.get() == before + 1
    stored = case.execute("target", "SELECT source_id FROM replicator.id_map WHERE map = 'author'")
    logins = case.execute("source", "SELECT md5(g::text)::uuid::text FROM generate_series(1, 20) g")
    assert sorted(stored) == sorted(logins)


def test_a_lookup_on_a_table_that_is_new_is_stored_with_it(case):
    from replicator.config import IdMapSettings

    with_tables(case, "note")
    assert case.run()
    with_tables(case, "note", "person", id_maps={"author": IdMapSettings(**MAPS["author"])})
    assert case.recopy(["person"])
    assert case.value("target", "SELECT count(*) FROM replicator.id_map WHERE map = 'author'") == 20


def test_a_copied_table_that_left_the_publication_is_an_error_until_it_is_copied_again(case):
    """What was written meanwhile is in no stream."""
    assert case.run()
    case.execute("source", "ALTER PUBLICATION replicator DROP TABLE note; DELETE FROM note WHERE id = 1")
    with pytest.raises(StateError, match="does not publish note"):
        case.recopy(["person"])
    case.execute("source", "ALTER PUBLICATION replicator ADD TABLE note")
    with pytest.raises(StateError, match="did not publish for a while note"):
        case.recopy(["person"])
    assert case.recopy(["note"])
    assert case.recopy(["person"])
    assert count(case, "note") == 11_999


def test_without_slot_or_publication_nothing_is_copied_again(case):
    assert case.run()
    case.execute("source", "DROP PUBLICATION replicator")
    with pytest.raises(SlotLost, match="publication"):
        case.recopy(["note"])
    case.execute("source", "SELECT pg_drop_replication_slot(%s)", case.slot)
    with pytest.raises(SlotLost, match="slot"):
        case.recopy(["note"])
    assert count(case, "note") == 12_000


def test_progress_and_metrics_follow_the_copy(case):
    seen = []
    rows = metrics.SNAPSHOT_ROWS.labels(table="note")._value.get()
    assert case.run(progress=seen.append)
    assert metrics.SNAPSHOT_ROWS.labels(table="note")._value.get() - rows == 12_000
    assert metrics.SNAPSHOT_ROWS_ESTIMATED.labels(table="note")._value.get() == 12_000
    assert metrics.SNAPSHOT_TABLE_STATE.labels(table="note", state="copied")._value.get() == 1
    last = seen[-1]
    assert last.finished
    assert last.rows_done == last.rows_estimated == 12_020
    done = [progress.rows_done for progress in seen]
    assert done == sorted(done)
    with psycopg.connect(case.source_dsn) as source, psycopg.connect(case.target_dsn) as target:
        assert assert_same_rows(source, target, "note") == 12_000
