"""The service as a process: started, stopped, killed, watched; its log goes to a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
FAILPOINTS = "REPLICATOR_FAILPOINTS"


class Service:
    """``replicator run`` in a process of its own, started as often as a test likes; one log for all its lives."""

    def __init__(self, options: Sequence[str], directory: Path, environment: dict[str, str]) -> None:
        self.options, self.directory, self.environment = list(options), directory, environment
        self.log = directory / "service.log"
        self.lives = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.memory = Memory()

    def start(self, *arguments: str, failpoints: str = "") -> None:
        assert not self.running
        self.lives += 1
        with self.log.open("ab") as log:
            log.write(f"──── life {self.lives}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                command(*self.options, "run", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=self.environment | {FAILPOINTS: failpoints},
            )
        self.memory.watch(self.process.pid)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def require_running(self) -> None:
        if not self.running:
            code = self.process.returncode if self.process else "never started"
            raise AssertionError(f"the service has ended: exit code {code}\n{tail(self.log)}")

    def kill(self) -> None:
        """SIGKILL; its copying processes must end with it."""
        self.require_running()
        assert self.process is not None
        children = psutil.Process(self.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(children, timeout=15)
        assert not alive, f"{len(alive)} copying processes outlive the service"

    def terminate(self, timeout_s: float) -> float:
        """SIGTERM; it must exit with 0. Returns the seconds it took."""
        self.require_running()
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no exit within {timeout_s:g} s of SIGTERM\n{tail(self.log)}") from None
        assert code == 0, f"exit code {code} after SIGTERM\n{tail(self.log)}"
        return time.monotonic() - began

    def wait_for_end(self, timeout_s: float = 60.0) -> int:
        """Its exit code, once it has ended by itself."""
        assert self.process is not None
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the service still runs after {timeout_s:g} s\n{tail(self.log)}") from None

    def close(self) -> None:
        if self.running:
            self.kill()
        self.memory.stop()


class Memory:
    """Peak memory of a process, and of it together with its children, in bytes."""

    def __init__(self) -> None:
        self.peak = 0  # of the process alone: the kernel's own high-water mark
        self.peak_with_children = 0  # sampled
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, pid: int) -> None:
        self.stop()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(pid, self._stop), name="memory", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self, pid: int, stop: threading.Event) -> None:
        while not stop.wait(0.1):
            try:
                main = psutil.Process(pid)
                everybody = [main, *main.children(recursive=True)]
                self.peak = max(self.peak, high_water_mark(pid))
            except (psutil.Error, OSError):
                return
            total = 0
            for each in everybody:
                try:
                    total += each.memory_info().rss
                except psutil.Error:
                    continue  # ended while we looked
            self.peak_with_children = max(self.peak_with_children, total)

    def __str__(self) -> str:
        return f"{self.peak / 2**20:.0f} MB, with children {self.peak_with_children / 2**20:.0f} MB"


def high_water_mark(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # a zombie has no memory left


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "replicator", *arguments]


def environment(**more: str) -> dict[str, str]:
    """Ours without settings of the replicator or libpq that happen to be set."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("REPLICATOR_", "PG"))}
    return {**clean, "PYTHONPATH": str(ROOT), **more}


def tail(log: Path, lines: int = 40) -> str:
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    return "\n".join([f"… {log.name}:", *text.splitlines()[-lines:]])


def say(*words: object) -> None:
    """What a test found out, for people; pytest shows it with -rP, or if the test failed."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
