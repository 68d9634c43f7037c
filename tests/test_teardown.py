"""Removing what we left, and nothing else."""

from __future__ import annotations

import contextlib

import psycopg
import pytest

from replicator.errors import ConfigError, Refused, TransientError
from replicator.postgres.connection import connect
from replicator.target import indexes, state
from replicator.teardown import teardown
from tests.snapshot.case import Case, simple_case

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE INDEX t_v ON t (v)"


@pytest.fixture
def case(pair) -> Case:
    case = simple_case(pair.source_dsn, pair.target_dsn)
    case.execute("source", TABLE)
    case.execute("target", TABLE)
    case.execute("source", "INSERT INTO t VALUES (1, 'a')")
    assert case.run()
    return case


def left(case: Case) -> set[str]:
    found = {"slot"} if case.slot_exists() else set()
    if case.value("source", "SELECT count(*) FROM pg_publication WHERE pubname = 'replicator'"):
        found.add("publication")
    if case.value("target", "SELECT to_regnamespace('replicator') IS NOT NULL"):
        found.add("schema")
    return found


def test_everything_goes_and_the_rows_stay(case):
    assert left(case) == {"slot", "publication", "schema"}
    done = teardown(case.settings)
    assert left(case) == set()
    assert [line.split()[0] for line in done.removed] == ["slot", "publication", "schema"]
    assert done.kept == ()
    assert case.value("target", "SELECT count(*) FROM t") == 1
    assert teardown(case.settings).removed == ()


@pytest.mark.parametrize("gone", ["slot", "publication"])
def test_parts_that_are_gone_already_are_no_fault(case, gone):
    if gone == "slot":
        case.execute("source", "SELECT pg_drop_replication_slot(%s)", case.slot)
    else:
        case.execute("source", "DROP PUBLICATION replicator")
    assert not any(line.startswith(gone) for line in teardown(case.settings).removed)
    assert left(case) == set()


def test_a_slot_that_this_target_knows_nothing_of_stays(case):
    """Another replicator, stopped for the moment, may live on it."""
    case.execute("target", "DROP SCHEMA replicator CASCADE")
    with pytest.raises(Refused, match="nothing was removed") as caught:
        teardown(case.settings)
    assert "pg_drop_replication_slot" in caught.value.hint
    assert left(case) == {"slot", "publication"}


def test_a_new_snapshot_works_afterwards(case):
    teardown(case.settings)
    case.execute("target", "TRUNCATE t")
    assert case.run()


def test_the_id_map_can_be_kept_for_customer_support_and_for_the_next_run(case):
    insert = "INSERT INTO replicator.id_map (map, source_id, target_id) VALUES ('users', 'a', 'b')"
    case.execute("target", insert)
    done = teardown(case.settings, keep_id_map=True)
    assert left(case) == {"schema"}
    assert [line for line in done.kept if "ID maps" in line]
    assert case.execute("target", "SELECT source_id, target_id FROM replicator.id_map") == [("a", "b")]
    for table in ("checkpoint", "table_state", "cutover_step", "deferred_index", "quarantine"):
        assert case.value("target", f"SELECT count(*) FROM replicator.{table}") == 0
    case.execute("target", "TRUNCATE t")
    assert case.run(), "the schema that was kept is whole"
    assert case.value("target", "SELECT count(*) FROM replicator.id_map") == 1
    teardown(case.settings)
    assert left(case) == set()


def test_a_running_service_refuses_it(case):
    with connect(case.settings.target.dsn, "target", purpose="test") as writer:
        state.lock_writer(writer, case.slot)
        with pytest.raises(Refused, match="nothing was removed"):
            teardown(case.settings)
    assert left(case) == {"slot", "publication", "schema"}


def test_an_unfinished_cutover_refuses_it(case):
    case.execute("target", "UPDATE replicator.checkpoint SET phase = 'cutting_over'")
    with pytest.raises(Refused, match="unfinished"):
        teardown(case.settings)
    assert left(case) == {"slot", "publication", "schema"}


def test_a_slot_that_somebody_reads_refuses_it(case):
    options = "(proto_version '1', publication_names 'replicator')"
    with contextlib.closing(connect(case.source_dsn, "source", purpose="test", replication=True)) as reader:
        reader.pgconn.exec_(f"START_REPLICATION SLOT {case.slot} LOGICAL 0/0 {options}".encode())
        with pytest.raises(Refused, match="in use"):
            teardown(case.settings)
    assert left(case) == {"slot", "publication", "schema"}


def test_the_state_of_another_source_is_not_ours_to_remove(case):
    case.execute("target", "UPDATE replicator.checkpoint SET system_identifier = '1'")
    with pytest.raises(Refused, match="another source"):
        teardown(case.settings)
    assert left(case) == {"slot", "publication", "schema"}


def test_a_slot_of_another_plugin_is_not_ours_to_remove(case):
    teardown(case.settings)
    case.execute("source", "SELECT pg_create_physical_replication_slot(%s)", case.slot)
    try:
        with pytest.raises(Refused, match="another plugin"):
            teardown(case.settings)
        assert case.slot_exists()
    finally:
        case.execute("source", "SELECT pg_drop_replication_slot(%s)", case.slot)


def test_another_slots_state_in_the_same_target_stays(case):
    case.execute(
        "target",
        "INSERT INTO replicator.checkpoint (slot, applied_lsn, system_identifier, database, phase)"
        " VALUES ('another', '0/1', '1', 'x', 'streaming')",
    )
    done = teardown(case.settings)
    assert [line for line in done.kept if "slot another" in line]
    assert case.execute("target", "SELECT slot FROM replicator.checkpoint") == [("another",)]
    assert case.value("target", "SELECT count(*) FROM replicator.table_state") == 0
    assert left(case) == {"schema"}


def test_a_schema_of_that_name_that_is_not_ours_stays(case):
    teardown(case.settings)
    case.execute("target", "CREATE SCHEMA replicator; CREATE TABLE replicator.theirs (id int)")
    assert teardown(case.settings).removed == ()
    assert left(case) == {"schema"}


def test_a_publication_of_another_role_stays(pair, case):
    database = str(psycopg.conninfo.conninfo_to_dict(case.source_dsn)["dbname"])
    role = f"remover_of_{database}"
    pair.source.create_role(role, "REPLICATION")
    try:
        settings = case.settings
        source = settings.source.model_copy(update={"dsn": pair.source.dsn(database, role)})
        done = teardown(settings.model_copy(update={"source": source}))
        assert [line for line in done.kept if "publication replicator" in line]
        assert left(case) == {"publication"}
    finally:
        case.execute("source", f"DROP ROLE {role}")


def test_indexes_that_an_interrupted_copy_has_dropped_come_back_first(case):
    """Only our state knows their definitions."""
    present = "SELECT indexdef FROM pg_indexes WHERE tablename = 't' ORDER BY 1"
    before = case.execute("target", present)
    case.execute("target", "TRUNCATE t")
    with connect(case.settings.target.dsn, "target", purpose="test") as conn, conn.transaction():
        dropped, _ = indexes.defer(conn, ("public", "t"))
    assert [index.name for index in dropped] == ["t_v"]
    assert case.execute("target", present) != before
    done = teardown(case.settings)
    assert case.execute("target", present) == before
    assert [line for line in done.kept if "index t_v" in line]


def test_indexes_of_tables_that_are_gone_do_not_stand_in_the_way(case):
    with connect(case.settings.target.dsn, "target", purpose="test") as conn, conn.transaction():
        indexes.defer(conn, ("public", "t"))
    case.execute("target", "DROP TABLE t")
    teardown(case.settings)
    assert left(case) == set()


def test_a_source_that_is_away_keeps_everything_until_it_is_given_up(case):
    """The slot must go first: nobody would know of it any more, and it fills the source's disk."""
    away = case.settings.source.model_copy(update={"dsn": "host=127.0.0.1 port=1 connect_timeout=2"})
    settings = case.settings.model_copy(update={"source": away})
    with pytest.raises(TransientError, match="nothing was removed") as refused:
        teardown(settings)
    assert "--skip-source" in refused.value.hint
    assert left(case) == {"slot", "publication", "schema"}
    teardown(settings, skip_source=True)
    assert left(case) == {"slot", "publication"}


def test_without_a_target_nothing_is_removed(case):
    target = case.settings.target.model_copy(update={"dsn": "nonsense"})
    with pytest.raises(ConfigError):
        teardown(case.settings.model_copy(update={"target": target}))
    assert left(case) == {"slot", "publication", "schema"}
