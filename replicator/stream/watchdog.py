"""A stop is answered in time, also while the target does not answer."""

from __future__ import annotations

import threading

import psycopg

from replicator.logs import get_logger
from replicator.postgres.connection import Connection, sever

log = get_logger(__name__)

_LOOK_S = 0.2
# A statement that still runs this long after a stop is cancelled. Where the target does not answer that either,
# hanging up and ending the process take up to 4 s more, and SIGTERM is to be answered within 10 s.
_STOP_GRACE_S = 5.0


class Watchdog:
    """Cancels the statement that keeps a stop from being answered in time."""

    def __init__(self, stop: threading.Event, conn: Connection) -> None:
        """``stop``: from when on the session ``conn`` has to come to an end."""
        self._stop, self._conn = stop, conn
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Watch, in a thread of its own."""
        self._thread.start()

    def finish(self) -> None:
        """The session has come to its end."""
        self._finished.set()

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            if self._finished.is_set():
                return
        if self._finished.wait(_STOP_GRACE_S):
            return
        try:
            self._conn.cancel_safe(timeout=1.0)
        except psycopg.Error:
            log.debug("cancel failed: the target does not answer")
        if not self._finished.wait(1.0):
            # It cannot even cancel. Hanging up ends the wait; the server rolls back what was not committed.
            sever(self._conn)
