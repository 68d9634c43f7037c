"""Copying on the workers of a Dask scheduler: real ones, as processes, one of which is killed in the middle."""

import json
import signal
import subprocess
import sys
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from distributed import Client

from replicator.errors import ConfigError
from snapshot.remote import dask_cluster
from tests.endurance.process import command, environment
from tests.oracle import assert_same_rows
from tests.snapshot.case import simple_case
from tests.snapshot.test_rows import wait_until

WAIT_S = 90.0
LOG_ROWS, KEYED_ROWS = 60_000, 40_000
COPIES_WAIT = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'log'::regclass"


class Cluster:
    """A scheduler and workers on free ports of this machine."""

    def __init__(self, directory):
        self.directory = directory
        self.processes = []
        file = directory / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        wait_until(lambda: file.exists() and "tcp://" in file.read_text(), WAIT_S)
        self.address = json.loads(file.read_text())["address"]

    def _start(self, *arguments):
        with (self.directory / f"dask-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments, "--host", "127.0.0.1"],
                stdout=log, stderr=log, cwd=self.directory, env=environment(),
            )  # fmt: skip
        self.processes.append(process)
        return process

    def start_workers(self, count):
        options = ("--nthreads", "2", "--no-nanny", "--no-dashboard")
        workers = [self._start("worker", self.address, *options) for _ in range(count)]
        with Client(self.address, timeout=WAIT_S, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=WAIT_S)
        return workers

    def close(self):
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path):
    made = None
    try:
        made = Cluster(tmp_path)
        yield made
    finally:
        if made is not None:
            made.close()


@pytest.fixture
def sides(pair):
    """A table in several parts without a key, so that a part which comes twice shows; and one with an index."""
    ddl = "CREATE TABLE log (n int, t text); CREATE TABLE keyed (id int PRIMARY KEY, t text); CREATE INDEX ON keyed (t)"
    with psycopg.connect(pair.source_dsn, autocommit=True) as conn:
        conn.execute(ddl + "; ALTER TABLE log REPLICA IDENTITY FULL")
        conn.execute("INSERT INTO log SELECT n %% 1000, repeat('x', 100) FROM generate_series(1, %s) AS n", [LOG_ROWS])
        conn.execute("INSERT INTO keyed SELECT n, md5(n::text) FROM generate_series(1, %s) AS n", [KEYED_ROWS])
        conn.execute("ANALYZE")
        pair.slot = conn.info.dbname
    with psycopg.connect(pair.target_dsn, autocommit=True) as conn:
        conn.execute(ddl)
    return pair


@contextmanager
def snapshot(sides, *arguments):
    process = subprocess.Popen(
        command("--source", sides.source_dsn, "--target", sides.target_dsn, "snapshot", *arguments),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(REPLICATOR_SNAPSHOT__SPLIT_ABOVE="1MB", REPLICATOR_SOURCE__SLOT=sides.slot),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def finish(process, exits=0):
    out, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == exits, out
    return out


def assert_copied(sides):
    with psycopg.connect(sides.source_dsn) as source, psycopg.connect(sides.target_dsn) as target:
        assert assert_same_rows(source, target, "log") == LOG_ROWS
        assert assert_same_rows(source, target, "keyed") == KEYED_ROWS


@contextmanager
def copies_held(sides, count):
    """Within the block at least ``count`` parts of ``log`` are begun and cannot go on; yields their release."""
    with psycopg.connect(sides.target_dsn) as blocker, psycopg.connect(sides.target_dsn, autocommit=True) as conn:
        blocker.execute("LOCK TABLE log IN SHARE MODE")

        def begun():
            wait_until(lambda: conn.execute(COPIES_WAIT).fetchone()[0] >= count, WAIT_S)

        yield begun, blocker.rollback


def test_another_worker_takes_over_what_a_killed_one_had_begun(sides, cluster):
    workers = cluster.start_workers(2)
    with copies_held(sides, 3) as (begun, release), snapshot(sides, "--dask", cluster.address) as process:
        begun()  # more than one worker's threads: both have begun
        workers[0].kill()
        workers[0].wait()
        release()
        finish(process)
    with psycopg.connect(sides.target_dsn) as conn:
        assert conn.execute("SELECT count(*) FROM replicator.copied_part WHERE table_name = 'log'").fetchone()[0] > 3
    assert_copied(sides)


@pytest.mark.parametrize("end", ["scheduler killed", "command stopped"])
def test_after_an_early_end_nobody_copies_on_and_the_next_run_resumes(sides, cluster, end):
    cluster.start_workers(1)
    with copies_held(sides, 2) as (begun, _):
        with snapshot(sides, "--dask", cluster.address) as process:
            begun()
            if end == "scheduler killed":
                cluster.scheduler.kill()
                assert "ended unexpectedly" in finish(process, exits=3)
            else:
                process.send_signal(signal.SIGTERM)
                finish(process, exits=128 + signal.SIGTERM)
        with psycopg.connect(sides.target_dsn, autocommit=True) as conn:
            wait_until(lambda: conn.execute(COPIES_WAIT).fetchone()[0] == 0)
    with snapshot(sides) as process:
        finish(process)
    assert_copied(sides)


def test_what_is_wrong_with_a_cluster_is_said(cluster):
    with pytest.raises(ConfigError, match="no workers"), dask_cluster(cluster.address):
        pass
    with pytest.raises(ConfigError, match="no Dask scheduler answers"), dask_cluster("tcp://127.0.0.1:1"):
        pass


class Twice(Executor):
    """Gives every task out twice, as happens when a worker is taken for dead."""

    def __init__(self, workers):
        self._pool = ThreadPoolExecutor(workers)

    def submit(self, fn, /, *args, **kwargs):
        first = self._pool.submit(fn, *args, **kwargs)
        second = self._pool.submit(fn, *args, **kwargs)

        def both():
            assert first.result() == second.result()
            return second.result()

        return ThreadPoolExecutor(1).submit(both)


@pytest.mark.parametrize("workers", [1, 4], ids=["one after the other", "at the same time"])
def test_a_part_that_is_given_out_twice_is_copied_once(sides, workers):
    case = simple_case(sides.source_dsn, sides.target_dsn, snapshot={"split_above": "1MB", "workers": 4})
    assert case.run(executor=Twice(workers))
    assert_copied(sides)
