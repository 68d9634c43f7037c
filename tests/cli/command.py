"""The real command in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def environment(**more: str) -> dict[str, str]:
    """Ours, without settings of the one who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("REPLICATOR_", "PG"))}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1", **more}


def replicator(
    *words: str, cwd: Path, timeout: float = 90, stdin: int = subprocess.DEVNULL, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "replicator", *words],
        cwd=cwd,
        env=environment(**more),
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@contextmanager
def running(*words: str, cwd: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on, ended with SIGTERM; its stderr goes to the file ``running.log``."""
    with (cwd / "running.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "replicator", *words],
            cwd=cwd,
            env=environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def dsns(source: str, target: str) -> Sequence[str]:
    """Both as options."""
    return ("--source", source, "--target", target)
