"""A stream reduced to its promise: each change of the source reaches the target late, together with the checkpoint."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

import psycopg

from replicator.model.lsn import Lsn
from replicator.postgres.connection import connect
from replicator.target import state
from tests.verify.sides import Sides

_MOST_QUEUED = 100

Change = Sequence[tuple[str, tuple[object, ...]]]  # statements of one transaction


class Trickle:
    """Writes changes to the source, and to the target `delay_s` later, transaction by transaction, in order.

    ``next_changes(n)`` gives the n-th transaction for the source and the one for the target. The target session holds
    the writer's lock as the service does.
    """

    def __init__(
        self,
        sides: Sides,
        next_changes: Callable[[int], tuple[Change, Change]],
        *,
        delay_s: float = 0.03,
        pause_s: float = 0.001,
    ) -> None:
        self._next_changes = next_changes
        self._delay_s = delay_s
        self._pause_s = pause_s
        self._slot = sides.settings.source.slot
        self._source = psycopg.connect(sides.settings.source.dsn, autocommit=True)
        self._watch = psycopg.connect(sides.settings.source.dsn, autocommit=True)
        self._target = connect(sides.settings.target.dsn, "target", purpose="trickle")
        self._queue: deque[tuple[float, str, Change]] = deque()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._faults: list[BaseException] = []
        self._threads = [threading.Thread(target=self._guard, args=(work,)) for work in (self._write, self._apply)]
        self.transactions = 0

    def __enter__(self) -> Self:
        state.migrate(self._target)
        state.lock_writer(self._target, self._slot)
        self._target.execute("SET search_path = public")
        with self._target.transaction():
            state.create_checkpoint(self._target, self._slot, Lsn.parse(self._now_lsn()), "1", "app")
            state.set_phase(self._target, self._slot, "streaming")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for conn in (self._source, self._watch, self._target):
            conn.close()
        if self._faults:
            raise self._faults[0]

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            while not self._stop.is_set() or (work == self._apply and self._queue):
                work()
        except BaseException as exc:
            self._faults.append(exc)

    def _write(self) -> None:
        if len(self._queue) >= _MOST_QUEUED:
            time.sleep(self._delay_s)
            return
        ours, theirs = self._next_changes(self.transactions)
        with self._lock:
            with self._source.transaction():
                for statement, parameters in ours:
                    self._source.execute(statement, parameters)
            self._queue.append((time.monotonic() + self._delay_s, self._now_lsn(), theirs))
        self.transactions += 1
        time.sleep(self._pause_s)

    def _apply(self) -> None:
        if not self._queue:
            with self._lock:
                # Nothing is on its way: the position of now is as good as applied.
                lsn = self._now_lsn() if not self._queue else None
            if lsn is not None:
                self._store(lsn, ())
            time.sleep(0.005)
            return
        due, lsn, change = self._queue.popleft()
        time.sleep(max(0.0, due - time.monotonic()))
        self._store(lsn, change)

    def _store(self, lsn: str, change: Change) -> None:
        with self._target.transaction():
            for statement, parameters in change:
                self._target.execute(statement, parameters)
            self._target.execute(
                "UPDATE replicator.checkpoint SET applied_lsn = %s::pg_lsn WHERE slot = %s", (str(lsn), self._slot)
            )

    def _now_lsn(self) -> str:
        [(lsn,)] = self._watch.execute("SELECT pg_current_wal_insert_lsn()::text").fetchall()
        return str(lsn)
