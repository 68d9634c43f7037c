"""Where the copying happens: processes or threads that end when we do."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection as PipeEnd
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.popen_spawn_posix import Popen
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import ModuleType, TracebackType
from typing import Any, Self, TypeVar

from replicator import failpoints
from snapshot.maps import MAPS
from snapshot.session import forget, forget_all, interrupt

# Starting processes takes longer than copying this much in threads.
SMALL_BYTES = 256 << 20
# How long to wait for interrupted tasks of an executor that is not ours to shut down.
_LENT_TIMEOUT_S = 5.0

Task = TypeVar("Task")
Result = TypeVar("Result")


class Pool:
    """Runs tasks in an executor of its own, or in one that is lent to it; a context manager.

    ``run`` names this run to `session.session`, so that `interrupt` finds its sessions.
    """

    def __init__(self, workers: int, total_bytes: int, lent: Executor | None = None) -> None:
        """``total_bytes`` decides between threads and processes."""
        self.run = secrets.token_hex(8)
        self._lent = lent is not None
        self._futures: set[Future[Any]] = set()
        self._lifeline: PipeEnd | None = None
        if lent is not None:
            self._executor = lent
        elif total_bytes < SMALL_BYTES:
            self._executor = ThreadPoolExecutor(workers, thread_name_prefix="snapshot")
        else:
            context = _LeanContext()
            theirs, self._lifeline = context.Pipe(duplex=False)
            self._executor = ProcessPoolExecutor(workers, context, initializer=_follow, initargs=(theirs,))

    @property
    def ends_with_us(self) -> bool:
        """Whether its workers end with this run, so that they may keep what they opened."""
        return not self._lent

    def submit(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        """Run ``function(task)``; both must be picklable."""
        future = self._executor.submit(function, task)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def interrupt(self) -> None:
        """End what runs, at once and whatever state the servers are in. Its futures fail."""
        if self._lifeline is not None:
            self._lifeline.close()
        interrupt(self.run)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None:
            self.interrupt()
        if self._lent:
            for future in list(self._futures):
                future.cancel()
            wait(self._futures, _LENT_TIMEOUT_S)
        else:
            self._executor.shutdown(wait=True, cancel_futures=True)
        if self._lifeline is not None:
            self._lifeline.close()
        forget(self.run)
        MAPS.forget()


def _follow(lifeline: PipeEnd) -> None:
    """In a new process: live no longer than the other end of ``lifeline``, which closes however its owner ends."""
    # Ctrl-C is for the owner, who ends us in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    failpoints.arm()
    Finalize(None, forget_all, exitpriority=1)

    def watch() -> None:
        lifeline.poll(None)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


class _LeanProcess(SpawnProcess):
    """Does not import the owner's main program, and with it the whole command line, into every worker."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main


class _LeanContext(SpawnContext):
    Process = _LeanProcess
