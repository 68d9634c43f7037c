"""SIGTERM for a service that is only just starting, and Ctrl-C for a command that is."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replicator.postgres.connection import connect
from tests.cli.command import environment, replicator
from tests.cli.test_commands import case  # noqa: F401  # a fixture
from tests.oracle import assert_same_rows


def start(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "replicator", *words],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_caught(process: subprocess.Popen[str], number: int) -> None:
    """Until our first line is past; what comes before it is the interpreter's start."""
    deadline = time.monotonic() + 30
    status = Path(f"/proc/{process.pid}/status")
    while not int(status.read_text().partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1:
        assert time.monotonic() < deadline
        assert process.poll() is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not say which signals are caught")
def test_a_service_that_is_being_loaded_ends_at_once_and_well(case, tmp_path):  # noqa: F811
    early = 0
    for pause_s in (0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5):
        process = start(tmp_path, "run")
        wait_until_caught(process, signal.SIGTERM)
        early += "pydantic_core" not in Path(f"/proc/{process.pid}/maps").read_text()
        time.sleep(pause_s)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 0, (pause_s, errors)
        assert "Traceback" not in errors
    assert early, "what takes long to load came first"
    done = replicator("run", "--until-caught-up", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with (
        connect(case.source_dsn, "source", purpose="test") as source,
        connect(case.target_dsn, "target", purpose="test") as target,
    ):
        for table in ("parent", "child", "other"):
            assert_same_rows(source, target, table)


@pytest.mark.parametrize("pause_s", [0.05, 0.15, 0.25])
def test_ctrl_c_while_a_command_is_being_loaded(tmp_path, pause_s):
    process = start(tmp_path, "plan", "--source", "host=192.0.2.1", "--target", "host=192.0.2.1")
    wait_until_caught(process, signal.SIGINT)  # by Python itself
    time.sleep(pause_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    before_us = "init_import_site" in errors  # Python has its own way to end there
    assert before_us or process.returncode in (130, -signal.SIGINT), errors
