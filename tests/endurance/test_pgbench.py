"""pgbench all along, and nothing but --source and --target: no settings file."""

import subprocess
import time

import psycopg
import pytest
from psycopg import conninfo

from replicator.demo.installations import find_installations
from tests.endurance.process import environment, say
from tests.endurance.rig import plain

TABLES = ("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history")


def test_pgbench_moves_whole(own_servers, tmp_path, keep):
    move(own_servers, tmp_path, keep, scale=1, seconds=8)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_pgbench_of_a_million_rows_moves_whole(own_servers, tmp_path, keep):
    move(own_servers, tmp_path, keep, scale=10, seconds=60)


def move(pair, tmp_path, keep, *, scale, seconds):
    """The cutover comes while pgbench runs: its sessions are shut out."""
    pgbench(pair.source, "-i", "-q", "-s", str(scale)).communicate()
    pgbench(pair.target, "-i", "-q", "-I", "tp").communicate()  # tables and primary keys, no rows
    rig = keep(plain(pair, tmp_path))
    load = pgbench(pair.source, "-n", "-c", "4", "-T", str(seconds * 10))
    try:
        rig.service.start()
        rig.wait_for_stream()
        time.sleep(seconds)
        assert load.poll() is None, "pgbench has ended before the cutover"
        rig.wait_until_near()
        rig.cutover()
        out, err = load.communicate(timeout=60)
    finally:
        load.kill()
    assert "read-only transaction" in err or "terminating connection" in err, f"{out}\n{err}"

    rows = rig.assert_same(*TABLES)
    with psycopg.connect(rig.target_dsn) as conn:
        sums = [
            conn.execute(f"SELECT sum({column}) FROM {table}").fetchone()[0]
            for table, column in zip(TABLES, ("abalance", "bbalance", "tbalance", "delta"), strict=True)
        ]
        history = conn.execute("SELECT count(*) FROM pgbench_history").fetchone()[0]
    assert len(set(sums)) == 1, sums
    assert history > 0
    say(f"{rows} rows, {history} transactions; nobody could write for {rig.downtime_s} s; memory {rig.service.memory}")


def pgbench(server, *arguments):
    """The program of the newest installation that has it, over TCP."""
    program = next(each / "pgbench" for each in reversed(find_installations().values()) if (each / "pgbench").exists())
    parameters = conninfo.conninfo_to_dict(server.dsn("app"))
    variables = environment(
        PGHOST=parameters["host"],
        PGPORT=str(parameters["port"]),
        PGUSER=parameters["user"],
        PGPASSWORD=parameters["password"],
    )
    return subprocess.Popen(
        [program, *arguments, "app"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
    )
