"""What all tables of a verification share: the settings, the ways to be stopped, the progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from replicator.config import Settings
from replicator.errors import Refused
from replicator.routing.idmap import IdMaps
from replicator.verify.merge import Tick
from replicator.verify.plan import Plan
from replicator.verify.snapshot import Follower, Sessions, SnapshotPair

_PROGRESS_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the comparison of one table is. ``expected``: rows by the source's statistics, 0 if unknown."""

    table: str
    rows: int
    expected: int
    done: bool


class Room:
    """Room for suspects, of all tables together: they are kept until the tables have been read; some 30 MB."""

    def __init__(self, suspects: int = 100_000) -> None:
        self._left = suspects
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether there was room for one more."""
        with self._lock:
            self._left -= self._left > 0
            return self._left > 0


class Halted(Exception):
    """The comparison was given up since its result is not needed any more: no error."""


@dataclass(frozen=True, slots=True)
class Job:
    """One verification. ``halt`` is set once the result is known (or lost), ``stop`` by the caller.

    ``running``: the slots whose streams apply changes meanwhile.
    """

    settings: Settings
    running: frozenset[str]
    fail_fast: bool
    stream_timeout_s: float
    progress: Callable[[Progress], None] | None
    stop: threading.Event
    halt: threading.Event = field(default_factory=threading.Event)
    room: Room = field(default_factory=Room)

    @property
    def live(self) -> bool:
        """Whether the target moves on meanwhile."""
        return bool(self.running)

    def raise_if_stopped(self) -> None:
        """Leave when asked to.

        Raises:
            Refused: by the caller.
            Halted: by another table.
        """
        if self.stop.is_set():
            raise Refused("verification was stopped before its end")
        if self.halt.is_set():
            raise Halted

    def ticker(self, plan: Plan) -> Tick:
        """Called every few thousand rows: stops when asked to, and reports progress now and then."""
        last = time.monotonic()

        def tick(rows: int) -> None:
            nonlocal last
            self.raise_if_stopped()
            now = time.monotonic()
            if rows and now - last >= _PROGRESS_S:
                last = now
                self.report_progress(plan, rows, done=False)

        return tick

    def report_progress(self, plan: Plan, rows: int, *, done: bool) -> None:
        """Tell the caller."""
        if self.progress is not None:
            self.progress(Progress(plan.name, rows, plan.route.source.rows_estimate, done))

    def follower(self, sessions: Sessions) -> Follower | None:
        """What waits for the stream, if it runs."""
        if not self.live:
            return None
        return Follower(sessions, self.running, timeout_s=self.stream_timeout_s, stop=self.stop)


@dataclass(frozen=True, slots=True)
class Desk:
    """Where one thread reads: on ``snapshots``, inside the snapshots of ``pair``."""

    job: Job
    pair: SnapshotPair
    maps: IdMaps  # as of the target's snapshot
    snapshots: Sessions
