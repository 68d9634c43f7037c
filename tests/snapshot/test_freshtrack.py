import psycopg
import pytest

from replicator.demo.freshtrack import TABLES, Workload
from tests.conftest import ALL_PAIRS
from tests.oracle import assert_same_freshtrack, assert_valid_foreign_keys
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
        " finished_at >= started_at, cardinality(columns) > 0"
        " FROM replicator.table_state JOIN replicator.checkpoint USING (slot)",
    )
    assert sorted(states) == sorted((table, "copied", counts[table], True, True, True, True) for table in TABLES)
    assert seen[-1].finished
    assert seen[-1].rows_done == sum(counts.values())
