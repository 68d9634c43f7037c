"""Where the copying happens, and how it ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import psutil
import psycopg
import pytest

from replicator.errors import TransientError
from snapshot.pool import SMALL_BYTES, Pool
from snapshot.session import Run, session
from tests.snapshot.case import simple_case
from tests.snapshot.test_rows import wait_until


def test_workers_load_neither_the_command_line_nor_settings_nor_metrics():
    """Each is a process with a memory of its own; the parent's main program is not imported there either."""
    with Pool(1, SMALL_BYTES) as pool:
        loaded = pool.submit(eval, "sorted(__import__('sys').modules)").result()
        main = pool.submit(eval, "getattr(__import__('sys').modules['__main__'], '__file__', None)").result()
    # Under pytest-xdist the parent's main program has no file; nor has the worker's then.
    assert main is None or main != getattr(sys.modules["__main__"], "__file__", None)
    code = "import snapshot.copy, snapshot.finish, sys; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "psycopg" in output
    assert not {"pydantic", "typer", "rich", "structlog", "prometheus_client", "pytest"} & {*loaded, *output}


def test_little_data_is_copied_in_threads():
    with Pool(2, SMALL_BYTES - 1) as pool:
        assert pool.submit(eval, "__import__('os').getpid()").result() == os.getpid()


def test_interrupting_ends_processes_at_once_whatever_they_do():
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), Pool(2, SMALL_BYTES) as pool:
        sleeps = [pool.submit(time.sleep, 60) for _ in range(2)]
        wait_until(lambda: len(psutil.Process().children()) >= 3)
        raise ZeroDivisionError
    assert time.monotonic() - started < 10
    for future in sleeps:
        assert isinstance(future.exception(), BrokenProcessPool)


def test_ctrl_c_is_for_the_owner():
    with Pool(1, SMALL_BYTES) as pool:
        worker = pool.submit(eval, "__import__('os').getpid()").result()
        os.kill(worker, signal.SIGINT)
        assert pool.submit(eval, "__import__('os').getpid()").result() == worker


def named(run, dsn):
    return Run(run, dsn, dsn, "slot", keeps_sessions=True)


def test_interrupting_ends_sessions_of_threads_though_the_server_does_not_answer(own_servers):
    ended = threading.Event()
    errors = []

    def wait_for_the_server(run):
        try:
            with session(named(run, own_servers.target_dsn), "target", "test") as conn:
                conn.execute("SELECT pg_sleep(60)")
        except psycopg.Error as exc:
            errors.append(exc)
        ended.set()

    with pytest.raises(ZeroDivisionError), Pool(1, 0) as pool:
        pool.submit(wait_for_the_server, pool.run)
        with psycopg.connect(own_servers.target_dsn, autocommit=True) as conn:
            sleeping = "SELECT FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep'"
            wait_until(lambda: conn.execute(sleeping).rowcount)
        own_servers.target.pause()
        raise ZeroDivisionError
    own_servers.target.resume()
    assert ended.is_set()
    assert [type(error) for error in errors] == [psycopg.OperationalError]


def test_a_session_opened_after_the_interruption_ends_at_once(database):
    pool = Pool(1, 0)
    pool.interrupt()
    with pytest.raises(TransientError, match="interrupted"), session(named(pool.run, database), "target", "test"):
        pass


def test_a_lent_executor_is_used_and_left_open():
    with ThreadPoolExecutor(1) as lent:
        with Pool(7, 1 << 40, lent) as pool:
            assert pool.submit(len, "abc").result() == 3
        assert lent.submit(len, "abcd").result() == 4


def test_a_lent_executor_gets_its_waiting_tasks_back():
    release = threading.Event()
    with ThreadPoolExecutor(1) as lent:
        with pytest.raises(ZeroDivisionError), Pool(1, 0, lent) as pool:
            running = pool.submit(lambda _: release.wait(20), None)
            waiting = pool.submit(len, "abc")
            threading.Timer(0.3, release.set).start()
            raise ZeroDivisionError
        assert running.result()
        assert waiting.cancelled()


def test_a_worker_that_is_killed_is_a_transient_error_and_the_next_run_ends_well(pair, monkeypatch):
    """As the kernel does when memory is short."""
    monkeypatch.setattr("snapshot.pool.SMALL_BYTES", 0)
    case = simple_case(pair.source_dsn, pair.target_dsn)
    for side in ("source", "target"):
        case.execute(side, "CREATE TABLE t (id int PRIMARY KEY)")
    case.execute("source", "INSERT INTO t SELECT generate_series(1, 100)")
    caught = []

    def run():
        try:
            case.run()
        except TransientError as exc:
            caught.append(exc)

    with psycopg.connect(case.target_dsn) as blocker:
        blocker.execute("LOCK TABLE t IN SHARE MODE")
        before = {child.pid for child in psutil.Process().children()}
        runner = threading.Thread(target=run)
        runner.start()
        wait_until(lambda: case.value("target", "SELECT count(*) FROM pg_locks WHERE NOT granted") > 0)
        for child in psutil.Process().children():
            if child.pid not in before and "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        runner.join(10)
        assert not runner.is_alive()
    assert "ended unexpectedly" in caught[0].message
    assert case.run()
    assert case.value("target", "SELECT count(*) FROM t") == 100


@pytest.mark.parametrize("side", ["source", "target"])
def test_stop_is_answered_in_time_though_a_server_hangs(own_servers, side):
    case = simple_case(own_servers.source_dsn, own_servers.target_dsn)
    for each in ("source", "target"):
        case.execute(each, "CREATE TABLE t (id int PRIMARY KEY)")
    case.execute("source", "INSERT INTO t SELECT generate_series(1, 100)")
    results = []
    server = getattr(own_servers, side)
    with psycopg.connect(case.target_dsn) as blocker:
        blocker.execute("LOCK TABLE t IN SHARE MODE")
        runner = threading.Thread(target=lambda: results.append(case.run()))
        runner.start()
        wait_until(lambda: case.value("target", "SELECT count(*) FROM pg_locks WHERE NOT granted") > 0)
        server.pause()
        try:
            time.sleep(1)  # the next look at the progress hangs
            case.stop.set()
            runner.join(10)
            in_time = not runner.is_alive()
        finally:
            server.resume()
        runner.join(20)
        assert in_time
        assert results == [False]
    case.stop.clear()
    assert case.run()
    assert case.value("target", "SELECT count(*) FROM t") == 100
