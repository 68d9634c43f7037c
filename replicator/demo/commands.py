"""The replicator's own commands, run as a user runs them: each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from replicator.errors import ReplicatorError

_POLL_S: Final = 0.05
_STOP_TIMEOUT_S: Final = 15.0
_TAIL_LINES: Final = 15

# Ends the service with us, however we end: our end of its stdin closes. $0 is a process group.
_WATCHDOG: Final = 'read -r _; kill -KILL "-$0"'


class DemoFailed(ReplicatorError):
    """The demo did not come to its end, or the two sides differ (exit 3)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command printed, and how long it took."""

    code: int
    stdout: str
    seconds: float

    def json(self) -> Any:
        """The JSON document on stdout."""
        return json.loads(self.stdout)


class Commands:
    """Runs ``python -m replicator`` with one settings file; output goes to files beside it."""

    def __init__(self, directory: Path, settings: Path) -> None:
        self.directory = directory
        self._settings = settings
        self._count = 0

    def run(self, *words: str, codes: tuple[int, ...] = (0,), tick: Callable[[], object] = lambda: None) -> Answer:
        """Run one command to its end.

        Args:
            codes: exit codes that count as success.
            tick: called again and again while it runs.

        Raises:
            DemoFailed: another exit code; the hint ends with what the command said.
        """
        self._count += 1
        name = "-".join([f"{self._count:02}", *(word for word in words if word.isalpha())][:3])
        out, err = self.directory / f"{name}.out", self.directory / f"{name}.err"
        started = time.monotonic()
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = self.start(words, stdout, stderr)
            try:
                while process.poll() is None:
                    tick()
                    time.sleep(_POLL_S)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        answer = Answer(process.returncode, out.read_text("utf-8"), time.monotonic() - started)
        if answer.code not in codes:
            said = tail(err) or tail(out)
            raise DemoFailed(f"`replicator {' '.join(words)}` ended with exit code {answer.code}", hint=said)
        return answer

    def start(self, words: tuple[str, ...], stdout: Any, stderr: Any) -> subprocess.Popen[bytes]:
        """Start one command. In a session of its own: Ctrl-C is for us, who then end it."""
        return subprocess.Popen(
            [sys.executable, "-m", "replicator", "-c", self._settings, *words],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            cwd=self.directory,
            # From wherever we were imported, and never from what lies about in the user's directory.
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )


class Service:
    """``replicator run`` in the background; its log is a file."""

    def __init__(self, commands: Commands) -> None:
        self.log = commands.directory / "service.log"
        self._commands = commands
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process exists."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; it appends to its log."""
        with self.log.open("ab") as log:
            self._process = self._commands.start(("run",), log, log)
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def require_running(self) -> None:
        """Raise DemoFailed, with the end of its log, if it has ended by itself."""
        if not self.running:
            raise DemoFailed("the service ended by itself", hint=tail(self.log))

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is said goodbye to."""
        assert self._process is not None
        self._dismiss_watchdog()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout_s: float) -> int:
        """Wait until it ends by itself; its exit code.

        Raises:
            DemoFailed: it did not in time.
        """
        assert self._process is not None
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"the service did not end within {timeout_s:.0f} s", hint=tail(self.log)) from None
        self._dismiss_watchdog()
        return code

    def close(self) -> None:
        """End it if it still runs; safe to repeat."""
        self._dismiss_watchdog()
        if self._process is None or not self.running:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _dismiss_watchdog(self) -> None:
        # Before the service is reaped: its process ID may then be somebody else's.
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.communicate()
            self._watchdog = None


def tail(path: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a file."""
    text = path.read_text("utf-8", "replace").rstrip()
    return "\n".join(text.splitlines()[-lines:])
