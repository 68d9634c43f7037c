"""Before anything is copied: what is refused, what is emptied, whose the slot is."""

import psycopg
import pytest

from replicator.errors import ConfigError, Refused, SlotLost, StateError
from replicator.postgres.catalog import server_identity
from replicator.source import slot as slots
from replicator.target import state
from tests.snapshot.case import simple_case

TABLES = """
CREATE TABLE parent (id int PRIMARY KEY, name text);
CREATE TABLE child (id int PRIMARY KEY, parent_id int REFERENCES parent);
"""


@pytest.fixture
def case(pair):
    case = simple_case(pair.source_dsn, pair.target_dsn)
    case.execute("source", TABLES)
    case.execute("source", "INSERT INTO parent SELECT g, 'p' || g FROM generate_series(1, 50) g")
    case.execute("source", "INSERT INTO child SELECT g, g FROM generate_series(1, 50) g")
    case.execute("target", TABLES)
    return case


def counts(case):
    return case.execute("target", "SELECT (SELECT count(*) FROM parent), (SELECT count(*) FROM child)")[0]


def test_rows_of_somebody_else_are_refused_and_nothing_is_made(case):
    case.execute("target", "INSERT INTO parent VALUES (1000, 'theirs'); INSERT INTO child VALUES (1, 1000)")
    with pytest.raises(Refused) as refused:
        case.run()
    assert "parent" in refused.value.message
    assert "child" in refused.value.message
    assert "--truncate" in refused.value.hint
    assert counts(case) == (1, 1)
    assert case.phase() is None
    assert not case.slot_exists()
    assert case.value("source", "SELECT count(*) FROM pg_publication") == 0


def test_truncate_empties_tables_that_reference_each_other(case):
    case.execute("target", "INSERT INTO parent VALUES (1000, 'theirs'); INSERT INTO child VALUES (1, 1000)")
    assert case.run(truncate=True)
    assert counts(case) == (50, 50)
    assert case.value("target", "SELECT max(id) FROM parent") == 50


def test_truncate_never_reaches_a_table_outside_the_plan(case):
    case.execute("target", "CREATE TABLE archive (parent_id int REFERENCES parent)")
    case.execute("target", "INSERT INTO parent VALUES (1000, 'theirs'); INSERT INTO archive VALUES (1000)")
    with pytest.raises(Refused, match="archive"):
        case.run(truncate=True)
    assert case.value("target", "SELECT count(*) FROM archive") == 1
    assert not case.slot_exists()


def test_a_slot_of_somebody_else_is_refused_and_left_alone(case):
    case.execute("source", "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", case.slot)
    with pytest.raises(StateError, match=f"slot {case.slot} already exists"):
        case.run()
    assert case.slot_exists()
    assert case.phase() is None


def test_a_slot_that_our_own_crash_left_is_replaced(case):
    """Phase `new` says that we were about to create it."""
    with case.sessions() as (writer, source, _):
        state.announce_checkpoint(writer, case.slot, *server_identity(source))
    case.execute("source", "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", case.slot)
    before = case.value(
        "source", "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", case.slot
    )
    case.execute("source", "INSERT INTO parent VALUES (51, 'later')")
    assert case.run()
    assert counts(case) == (51, 50)
    assert case.value("target", "SELECT applied_lsn > %s::pg_lsn FROM replicator.checkpoint", before), (
        "the old slot would have replayed what the snapshot holds"
    )


def test_a_slot_taken_while_we_looked_away_is_not_claimed(case, monkeypatch):
    """Between the look and the creation; the announcement is withdrawn, or a restart would drop their slot."""
    monkeypatch.setattr("snapshot.run.load_slot", lambda *_: None)
    case.execute("source", "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", case.slot)
    with pytest.raises(StateError, match="already exists"):
        case.run()
    assert case.phase() is None
    assert case.slot_exists()


def test_the_state_of_another_source_is_refused(case):
    assert case.run()
    case.execute("target", "UPDATE replicator.checkpoint SET system_identifier = '1', phase = 'copying'")
    with pytest.raises(StateError, match="another source"):
        case.run()


def test_a_snapshot_without_its_slot_cannot_be_resumed(case):
    assert case.run(only=[("public", "parent")]) is False
    with psycopg.connect(case.source_dsn, autocommit=True) as conn:
        slots.drop_slot(conn, case.slot)
    with pytest.raises(SlotLost, match="gone from the source"):
        case.run()


def test_tables_left_out_stay_pending_and_come_with_the_next_run(case):
    assert case.run(exclude=[("public", "child")]) is False
    assert case.table_states() == {"parent": "copied", "child": "pending"}
    assert case.phase() == "copying"
    assert counts(case) == (50, 0)
    case.execute("source", "INSERT INTO parent VALUES (51, 'later'); INSERT INTO child VALUES (51, 51)")
    assert case.run()
    assert case.phase() == "catching_up"
    # The parent of row 51 is left to the stream: its table was copied earlier.
    assert counts(case) == (50, 51)


def test_a_session_that_a_killed_run_left_behind_is_ended(case):
    """The server does not notice for hours that a host is gone, and the session holds its table against us."""
    assert case.run(exclude=[("public", "child")]) is False
    case.execute("target", "UPDATE replicator.table_state SET state = 'copying' WHERE table_name = 'parent'")
    dsn = psycopg.conninfo.make_conninfo(case.target_dsn, application_name=f"replicator copy {case.slot}"[:63])
    with psycopg.connect(dsn) as orphan:
        orphan.execute("INSERT INTO parent VALUES (999, 'half')")
        orphan.execute("SELECT FROM replicator.table_state WHERE table_name = 'parent' FOR SHARE")
        assert case.run()
        with pytest.raises(psycopg.OperationalError):
            orphan.execute("SELECT 1")
    assert counts(case) == (50, 50)


def test_a_pending_table_that_somebody_filled_meanwhile_is_refused(case):
    assert case.run(exclude=[("public", "child")]) is False
    case.execute("target", "INSERT INTO child VALUES (1000, 1)")
    with pytest.raises(Refused, match="child"):
        case.run()
    assert case.value("target", "SELECT count(*) FROM child WHERE id = 1000") == 1


def test_a_table_outside_the_plan_is_a_usage_error(case):
    with pytest.raises(ConfigError, match="nonsense"):
        case.run(only=[("public", "nonsense")])


def test_a_finished_snapshot_is_not_repeated(case):
    assert case.run()
    case.execute("target", "DELETE FROM child")
    assert case.run()
    assert counts(case) == (50, 0)
