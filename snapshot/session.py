"""Sessions of copying threads and processes, which somebody else can end."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from replicator.errors import TransientError
from replicator.postgres.connection import Connection, Side, connect

_lock = threading.Lock()
_open: defaultdict[str, set[Connection]] = defaultdict(set)
_ended: set[str] = set()


@contextmanager
def session(run: str, dsn: str, side: Side, purpose: str) -> Iterator[Connection]:
    """A session that `interrupt` ends. Leaving the block closes it, and so undoes what was not committed."""
    with contextlib.closing(connect(dsn, side, purpose=purpose)) as conn:
        with _lock:
            if run in _ended:
                raise TransientError("the snapshot was interrupted")
            _open[run].add(conn)
        try:
            yield conn
        finally:
            with _lock:
                _open[run].discard(conn)


def interrupt(run: str) -> None:
    """End all sessions of ``run`` in this process, now and later.

    Works on the sockets, so that it needs no answer of a server.
    """
    with _lock:
        _ended.add(run)
        for conn in _open[run]:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(conn.fileno())) as twin:
                twin.shutdown(socket.SHUT_RDWR)


def forget(run: str) -> None:
    """The run is over: keep nothing of it."""
    with _lock:
        _ended.discard(run)
        _open.pop(run, None)
