"""kill -9 at several moments, then resume: nothing lost, nothing twice, every index back."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from replicator.demo.freshtrack import settings_toml
from replicator.model.lsn import Lsn
from tests.oracle import assert_same_freshtrack
from tests.snapshot.case import freshtrack_case, slot_name

ROOT = Path(__file__).parents[2]
SNAPSHOT = {"workers": 3, "split_above": "512kB"}

# What the target shows at the moment of the kill.
MOMENTS = {
    "announced": "SELECT EXISTS (SELECT FROM replicator.checkpoint)",
    "begun": "SELECT EXISTS (SELECT FROM replicator.table_state WHERE attempt > 0)",
    "half": "SELECT count(*) >= 12 FROM replicator.table_state WHERE state = 'copied'",
    "big_table": "SELECT EXISTS (SELECT FROM pg_stat_progress_copy WHERE relid = 'sensor_readings'::regclass)",
    "indexes_away": "SELECT EXISTS (SELECT FROM replicator.deferred_index WHERE state = 'dropped')",
    "keys_away": "SELECT EXISTS (SELECT FROM replicator.deferred_index JOIN replicator.table_state USING (table_name)"
    " WHERE definition LIKE 'ALTER TABLE%' AND deferred_index.state = 'dropped' AND table_state.state = 'copied')",
    "rows_in": "SELECT bool_and(state = 'copied') FROM replicator.table_state",
}


@pytest.fixture
def killed(pair, tmp_path):
    """The case, and ``kill(question, delay_s)``: run a snapshot in a process of its own and kill it then."""
    case = freshtrack_case(pair.source_dsn, pair.target_dsn, tmp_path, 40_000, snapshot=SNAPSHOT)
    file = tmp_path / "replicator.toml"
    file.write_text(
        settings_toml(pair.source_dsn, pair.target_dsn, source={"slot": slot_name(pair.source_dsn)}, snapshot=SNAPSHOT)
    )

    def kill(question, delay_s=0.0):
        process = subprocess.Popen([sys.executable, "-m", "tests.snapshot.killable", str(file)], cwd=ROOT)
        with psycopg.connect(pair.target_dsn, autocommit=True) as conn:
            while process.poll() is None and not conn.execute(question).fetchone()[0]:
                time.sleep(0.002)
        time.sleep(delay_s)
        try:
            workers = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            workers = []
        if process.poll() is not None:
            return False
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive, "copying processes outlive the one that started them"
        return True

    return case, kill


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_snapshot_resumes_and_ends_equal(killed, moment):
    case, kill = killed
    before = case.indexes(), case.constraints()
    assert kill(MOMENTS[moment])
    assert case.run()
    assert_same_freshtrack(case.source_dsn, case.target_dsn, case.map_file)
    assert (case.indexes(), case.constraints()) == before
    assert case.phase() == "catching_up"
    assert case.value("source", "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == 1


def test_a_snapshot_killed_again_and_again_while_the_source_is_written_to_ends_equal(killed):
    """Each resume copies under a newer snapshot: what is copied stays, what is not comes anew, and every
    table shows the source as of its own snapshot. Rows that only the last one can hold tell them apart."""
    case, kill = killed
    before = case.indexes(), case.constraints()
    number = 0
    for number, delay_s in enumerate((0.0, 0.1, 0.2, 0.4)):
        attempts = sum(case.attempts())
        if not kill(f"SELECT coalesce(sum(attempt), 0) > {attempts} FROM replicator.table_state", delay_s):
            break
        if case.table_states()["sensor_readings"] != "copied":
            case.execute("source", "UPDATE sensor_readings SET battery = %s", number)
    assert number > 0
    assert case.run()
    assert (case.indexes(), case.constraints()) == before
    [(lsn, applied)] = case.execute(
        "target",
        "SELECT snapshot_lsn::text, applied_lsn::text"
        " FROM replicator.table_state JOIN replicator.checkpoint USING (slot)"
        " WHERE table_name = 'sensor_readings'",
    )
    assert Lsn.parse(lsn) > Lsn.parse(applied)
    assert case.value("target", "SELECT count(DISTINCT battery) FROM sensor_readings") == 1
    assert case.execute("target", "SELECT min(battery), count(*) FROM sensor_readings") == case.execute(
        "source", "SELECT min(battery), count(*) FROM sensor_readings"
    )
