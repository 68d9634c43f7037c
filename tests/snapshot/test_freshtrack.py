from contextlib import contextmanager

import psycopg
import pytest

from replicator.demo.freshtrack import TABLES, Workload
from replicator.errors import TransientError
from snapshot.export import export_snapshot
from tests.conftest import ALL_PAIRS
from tests.oracle import (
    FRESHTRACK_SOURCE,
    assert_same_freshtrack,
    assert_same_rows,
    assert_valid_foreign_keys,
    load_user_map,
)
from tests.snapshot.case import freshtrack_case


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_the_copy_equals_the_source_through_both_id_maps(pair, tmp_path):
    case = freshtrack_case(pair.source_dsn, pair.target_dsn, tmp_path, 12_000)
    before = case.indexes()
    seen = []
    assert case.run(progress=seen.append)

    counts = assert_same_freshtrack(pair.source_dsn, pair.target_dsn, case.map_file)
    assert sum(counts.values()) > 10_000
    assert all(counts.values())
    with psycopg.connect(pair.target_dsn) as conn:
        assert_valid_foreign_keys(conn)
    assert case.phase() == "catching_up"
    assert case.indexes() == before
    assert case.value("target", "SELECT count(*) FROM trigger_audit") == 0

    states = case.execute(
        "target",
        "SELECT table_name, state, rows_copied, bytes_copied > 0, snapshot_lsn = applied_lsn,"
        " finished_at >= started_at, jsonb_array_length(record -> 'columns') > 0"
        " FROM replicator.table_state JOIN replicator.checkpoint USING (slot)",
    )
    assert sorted(states) == sorted((table, "copied", counts[table], True, True, True, True) for table in TABLES)
    assert seen[-1].finished
    assert seen[-1].rows_done == sum(counts.values())


def test_under_live_writers_the_copy_is_the_source_as_of_one_moment(pair, tmp_path, monkeypatch):
    """The oracle reads the source through the very snapshot that the workers read, while the writers go on."""
    case = freshtrack_case(pair.source_dsn, pair.target_dsn, tmp_path, 12_000, snapshot={"split_above": "512kB"})
    with psycopg.connect(pair.source_dsn) as then, psycopg.connect(pair.target_dsn) as target:

        @contextmanager
        def exported(*args, **options):
            with export_snapshot(*args, **options) as snapshot:
                then.rollback()
                then.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                then.execute(f"SET TRANSACTION SNAPSHOT '{snapshot.name}'")
                # What a snapshot sees does not survive a TRUNCATE: from here on a writer's has to wait.
                names = then.execute("SELECT format('%I', tablename) FROM pg_tables WHERE schemaname = 'public'")
                then.execute(f"LOCK TABLE {', '.join(name for (name,) in names)} IN ACCESS SHARE MODE")
                yield snapshot

        monkeypatch.setattr("snapshot.run.export_snapshot", exported)
        then.autocommit = True
        with Workload(pair.source_dsn, seed=5, writers=2) as workload:
            workload.wait_for(20)
            assert copied_as_by_the_service(case)
        load_user_map(then, case.map_file)
        for table in TABLES:
            assert_same_rows(then, target, table, source_columns=FRESHTRACK_SOURCE.get(table))
        assert_valid_foreign_keys(target)
        [(moved_on,)] = then.execute("SELECT pg_current_wal_lsn() > %s::pg_lsn", [applied(target)]).fetchall()
        assert moved_on


def copied_as_by_the_service(case):
    """A writer's TRUNCATE right behind the snapshot's moment spoils that moment: the service takes another."""
    while True:
        try:
            return case.run()
        except TransientError:
            if case.phase() != "new":
                raise


def applied(target):
    return target.execute("SELECT applied_lsn::text FROM replicator.checkpoint").fetchone()[0]
