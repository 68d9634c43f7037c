"""What is different where a person sits at a terminal, and signals in the middle of the work."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager

import psycopg
import pytest

from tests.cli.command import environment, replicator
from tests.cli.test_commands import case, execute  # noqa: F401  # `case` is a fixture


class Terminal:
    """A command at a pseudo-terminal: what it shows, and keys to press."""

    def __init__(self, *words, cwd):
        self.shown = ""
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "replicator", *words],
            cwd=cwd,
            env=environment(TERM="xterm", LINES="50"),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        while True:
            select.select([self._master], [], [])
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return  # the command has closed its end
            if not data:
                return
            self.shown += data.decode(errors="replace")

    def wait_for(self, text, timeout_s=30):
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            time.sleep(0.05)

    def press(self, keys):
        os.write(self._master, keys.encode())

    def end(self, timeout_s=30):
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code


@contextmanager
def terminal(*words, cwd):
    opened = Terminal(*words, cwd=cwd)
    try:
        yield opened
    finally:
        if opened.process.poll() is None:
            opened.process.kill()
            opened.process.wait()


def test_a_no_changes_nothing_and_a_yes_goes_on(case, tmp_path):  # noqa: F811
    assert replicator("snapshot", cwd=tmp_path).returncode == 0
    with terminal("teardown", cwd=tmp_path) as window:
        window.wait_for("[y/N]")
        window.press("n\n")
        assert window.end() == 1
        assert "nothing was changed" in window.shown
    assert execute(case.target_dsn, "SELECT count(*) FROM replicator.checkpoint") == [(1,)]
    with terminal("teardown", cwd=tmp_path) as window:
        window.wait_for("[y/N]")
        window.press("\x03")
        assert window.end() == 130
    with terminal("teardown", cwd=tmp_path) as window:
        window.wait_for("[y/N]")
        window.press("y\n")
        assert window.end() == 0
    assert execute(case.target_dsn, "SELECT to_regclass('replicator.checkpoint')") == [(None,)]


def test_truncate_names_the_tables_and_asks_only_if_there_are_any(case, tmp_path):  # noqa: F811
    execute(case.target_dsn, "INSERT INTO other VALUES (5)")
    with terminal("snapshot", "--truncate", cwd=tmp_path) as window:
        window.wait_for("Empty these target tables: other? [y/N]")
        window.press("y\n")
        assert window.end() == 0
        assert "snapshot complete" in window.shown
    assert execute(case.target_dsn, "SELECT count(*) FROM other") == [(0,)]
    assert replicator("teardown", "--yes", cwd=tmp_path).returncode == 0
    execute(case.target_dsn, "TRUNCATE parent, child, other")
    with terminal("snapshot", "--truncate", cwd=tmp_path) as window:
        assert window.end() == 0
        assert "[y/N]" not in window.shown


def test_progress_is_for_terminals(case, tmp_path):  # noqa: F811
    with terminal("snapshot", cwd=tmp_path) as window:
        assert window.end() == 0
        assert "copying" in window.shown
        assert "\x1b[" in window.shown
    with terminal("verify", cwd=tmp_path) as window:
        assert window.end() == 0
        assert "equal" in window.shown
    assert replicator("teardown", "--yes", cwd=tmp_path).returncode == 0
    execute(case.target_dsn, "TRUNCATE parent, child, other")
    plain = replicator("snapshot", cwd=tmp_path)
    assert plain.stdout == "snapshot complete\n"
    assert "\x1b" not in plain.stderr
    assert "\r" not in plain.stderr


def test_watch_renews_itself_until_ctrl_c(case, tmp_path):  # noqa: F811
    assert replicator("snapshot", cwd=tmp_path).returncode == 0
    with terminal("status", "--watch", cwd=tmp_path) as window:
        window.wait_for("catching_up")
        execute(case.target_dsn, "UPDATE replicator.checkpoint SET phase = 'streaming'")
        window.wait_for("streaming")
        window.press("\x03")
        assert window.end() == 1, "unhealthy: no service runs"
        assert "Traceback" not in window.shown


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_snapshot_ends_at_a_signal_and_goes_on_later(case, tmp_path, signum):  # noqa: F811
    """The copy waits for a lock that another session holds, and answers all the same."""
    with psycopg.connect(case.target_dsn) as holder:
        holder.execute("LOCK TABLE other IN SHARE MODE")
        process = subprocess.Popen(
            [sys.executable, "-m", "replicator", "snapshot", "--exclude", "child"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'other'::regclass"
        deadline = time.monotonic() + 30
        while execute(case.target_dsn, waiting) == [(0,)]:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(signum)
        out, err = process.communicate(timeout=15)
    assert process.returncode == 128 + signum
    assert out == ""
    assert "goes on where it ended" in err
    assert "Traceback" not in err
    assert replicator("snapshot", cwd=tmp_path).returncode == 0
    assert execute(case.target_dsn, "SELECT count(*) FROM parent") == [(50,)]
