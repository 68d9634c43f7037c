"""Programs under measurement: seconds, CPU time, memory, and what they said when they failed."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

# Finding a process tree means reading all of /proc: more often, it slows down what it watches, and ours alone.
_SAMPLE_S = 0.5


class PeerFailed(Exception):
    """A peer could not do its work; the message is its last words."""


@dataclass(frozen=True, slots=True)
class Usage:
    """``cpu_s`` of the program and its children; ``peak_rss`` in bytes, summed over its process tree."""

    seconds: float
    cpu_s: float
    peak_rss: int
    output: str  # stdout and stderr


class Program:
    """A program that runs while we do something else; a context manager that ends it with SIGTERM."""

    def __init__(self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> None:
        self._command = [str(word) for word in command]
        self._env = {**os.environ, **(env or {})}

    def start(self) -> Self:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `finish`
        self._cpu_before = children_cpu_s()
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT, env=self._env
        )
        self._memory = _Memory(self._process.pid)
        return self

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def said(self, text: str) -> bool:
        """Whether its output holds ``text`` so far."""
        return text.encode() in self._read()

    def finish(self, *, timeout_s: float = 3600.0, sigterm: bool = False) -> Usage:
        """Wait for its end.

        Raises:
            PeerFailed: it ended with another code than 0, or not in time.
        """
        if sigterm and self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = -1
        seconds = time.monotonic() - self._started
        peak = self._memory.stop()
        output = self._read().decode(errors="replace")
        self._output.close()
        if code != 0:
            ended = f"gave up after {timeout_s:.0f} s" if code == -1 else f"exit code {code}"
            raise PeerFailed(f"{Path(self._command[0]).name}: {ended}: {_last_words(output)}")
        return Usage(seconds, children_cpu_s() - self._cpu_before, peak, output)

    def _read(self) -> bytes:
        # pread: the file's position is the program's own place to write at.
        return os.pread(self._output.fileno(), 1 << 24, 0)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if not self._output.closed:
            self._memory.stop()
            self._output.close()


def run(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, timeout_s: float = 3600.0) -> Usage:
    """Run a program to its end.

    Raises:
        PeerFailed: as of `Program.finish`.
    """
    return Program(command, env=env).start().finish(timeout_s=timeout_s)


class _Memory(threading.Thread):
    """Samples the memory of a process tree. Pages shared between processes count once for each of them."""

    def __init__(self, pid: int) -> None:
        super().__init__(name="memory", daemon=True)
        self._pid, self._peak, self._done = pid, 0, threading.Event()
        self.start()

    def run(self) -> None:
        try:
            root = psutil.Process(self._pid)
            while not self._done.wait(_SAMPLE_S):
                tree = [root, *root.children(recursive=True)]
                self._peak = max(self._peak, sum(_rss(process) for process in tree))
        except psutil.NoSuchProcess:
            return

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self._peak


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def children_cpu_s() -> float:
    """CPU time of all programs that this process has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _last_words(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    faults = [line for line in lines if "ERROR" in line or "error" in line or "FATAL" in line]
    return " | ".join((faults or lines)[-3:])[:600]
