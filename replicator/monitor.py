"""Watches a running service from beside it: reads the status, sets the gauges, keeps an idle source talking."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from replicator import metrics
from replicator.config import Settings
from replicator.errors import ReplicatorError
from replicator.logs import get_logger
from replicator.postgres.connection import Connection, connect, translated
from replicator.source.messages import emit_heartbeat
from replicator.status import RUNNING_PHASES, STREAMING_PHASES, Status, StatusReader

_READ_EVERY_S: Final = 2.0
_HEARTBEAT_EVERY_S: Final = 5.0
_STOP_WITHIN_S: Final = 0.8

log = get_logger(__name__)


class Monitor:
    """A thread that reads the status every 2 s and writes a heartbeat to the source every 5 s.

    It has sessions of its own, so a slow reading never holds up the stream, and it outlives every error: what
    fails is logged and tried again. ``status`` and ``problems`` are what the web server serves.
    """

    def __init__(self, settings: Settings) -> None:
        self._source_dsn = settings.source.dsn
        self._reader = StatusReader(settings)
        self._heart: Connection | None = None
        self._status = Status()
        self._failure: str | None = "the status has not been read yet"
        self._complaints: dict[str, str] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        """Start the thread; once per monitor."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. One that waits for a server that does not answer is left behind: it ends by itself."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_WITHIN_S)

    def status(self) -> dict[str, object]:
        """The last reading, as ``status --json`` shows it, with the reason if it could not be made anew."""
        problems = self.problems()
        return {**self._status.to_json(), "healthy": not problems, "problems": problems}

    def problems(self) -> list[str]:
        """Why somebody should look; empty means healthy."""
        failure = self._failure
        return [*self._status.problems, *([failure] if failure else [])]

    def __enter__(self) -> Monitor:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def _run(self) -> None:
        next_heartbeat = 0.0
        try:
            while not self._stopped.is_set():
                self._attempt("status", self._read)
                if time.monotonic() >= next_heartbeat:
                    self._attempt("heartbeat", self._beat)
                    next_heartbeat = time.monotonic() + _HEARTBEAT_EVERY_S
                self._stopped.wait(_READ_EVERY_S)
        finally:
            self._reader.close()
            self._close_heart()

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as exc:  # whatever it is, the next reading may work
            reason = exc.message if isinstance(exc, ReplicatorError) else type(exc).__name__
            if what == "status":
                self._failure = f"the status cannot be read: {reason}"
            # Once per reason: a server that is down for an hour is one event, not 1800.
            if self._complaints.get(what) != reason:
                log.warning(f"{what} failed", kind=type(exc).__name__, reason=reason)
            self._complaints[what] = reason
        else:
            if self._complaints.pop(what, None) is not None:
                log.info(f"{what} works again")

    def _read(self) -> None:
        before, self._status = self._status, self._reader.read()
        status = self._status
        if status.waits and not before.waits:
            log.warning("waiting for a lock", reason="; ".join(status.waits))
        self._failure = None
        set_gauges(self._status)
        _tell_of_slot(before, self._status)

    def _beat(self) -> None:
        if self._status.phase not in STREAMING_PHASES:
            return
        try:
            with translated("source"):
                if self._heart is None:
                    self._heart = connect(self._source_dsn, "source", purpose="heartbeat")
                    self._heart.execute("SET statement_timeout = '5s'")
                emit_heartbeat(self._heart)
        except ReplicatorError:
            self._close_heart()
            raise

    def _close_heart(self) -> None:
        if self._heart is not None:
            self._heart.close()
            self._heart = None


def _tell_of_slot(before: Status, now: Status) -> None:
    """Log when the slot comes nearer to its end, and when it is well again."""
    if now.slot is None or now.phase not in RUNNING_PHASES:
        return
    known = before.slot.wal_status if before.slot is not None else "reserved"
    status = now.slot.wal_status
    if status == known:
        return
    if status in ("unreserved", "lost"):
        log.warning(f"the slot is {status}", slot=now.slot.name, keeps_bytes=now.slot.retained_bytes)
    else:
        log.info(f"the slot is {status}", slot=now.slot.name, keeps_bytes=now.slot.retained_bytes)


def set_gauges(status: Status) -> None:
    """Set every gauge that a status knows; those it does not know keep their last value."""
    metrics.set_phase(status.phase)
    if status.lag_bytes is not None:
        metrics.LAG_BYTES.set(status.lag_bytes)
    if status.applied_lsn is not None:
        metrics.APPLIED_LSN_BYTES.set(status.applied_lsn)
    if (slot := status.slot) is not None:
        metrics.SLOT_RETAINED_BYTES.set(slot.retained_bytes)
        metrics.SLOT_SAFE_BYTES.set(float("inf") if slot.safe_bytes is None else slot.safe_bytes)
        forecast = slot.seconds_until_lost
        metrics.SLOT_SECONDS_UNTIL_LOST.set(float("inf") if forecast is None else forecast)
        metrics.set_wal_status(slot.wal_status)
    elif status.source_lsn is not None and status.phase in RUNNING_PHASES:  # dropped: for us the same as lost
        metrics.SLOT_SECONDS_UNTIL_LOST.set(0)
        metrics.set_wal_status("lost")
    for table in status.tables:
        if table.state in metrics.TABLE_STATES:
            metrics.set_table_state(table.name, table.state)
        if table.differences is not None:
            metrics.VERIFY_DIFFERENCES.labels(table=table.name).set(table.differences)
    for step in status.cutover:
        if step.step in metrics.CUTOVER_STEPS and step.state in metrics.CUTOVER_STATES:
            metrics.set_cutover_step(step.step, step.state)
        if step.write_downtime_seconds is not None:
            metrics.CUTOVER_WRITE_DOWNTIME_SECONDS.set(step.write_downtime_seconds)
