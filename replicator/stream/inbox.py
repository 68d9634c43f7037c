"""What lies between the receiver's thread and the applier's: batches in order, bounded in bytes."""

from __future__ import annotations

import threading
from collections import deque

from replicator import metrics
from replicator.model.lsn import ZERO, Lsn
from replicator.stream.assembler import Position
from replicator.stream.batch import Batch


class Inbox:
    """A queue of batches. While the applier is busy, the last batch in it grows up to the limits.

    A failure or the end of the receiver reaches the applier through `close`.
    """

    def __init__(self, *, max_rows: int, max_bytes: int) -> None:
        """``max_rows`` and ``max_bytes`` bound one batch; the queue holds two of them, at the most."""
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self._batches: deque[Batch] = deque()
        self._bytes = 0
        self._position = ZERO
        self._changed = threading.Condition()
        self._closed: BaseException | None = None
        self._is_closed = False

    def put(self, item: Batch | Position) -> None:
        """Add what follows. Never blocks: ask `is_full` before reading more."""
        with self._changed:
            if isinstance(item, Position):
                self._put_position(item.lsn)
            else:
                self._put_batch(item)
            self._changed.notify_all()

    def _put_position(self, lsn: Lsn) -> None:
        if self._batches and self._batches[-1].complete:
            last = self._batches[-1]
            last.end_lsn = max(last.end_lsn, lsn)
        else:
            self._position = max(self._position, lsn)

    def _put_batch(self, batch: Batch) -> None:
        if batch.complete:
            batch.end_lsn = max(batch.end_lsn, self._position)
        # Or it would come out between the parts of a transaction, and commit the first of them.
        self._position = ZERO
        self._bytes += batch.size
        metrics.QUEUE_BYTES.set(self._bytes)
        if self._batches and batch.complete:
            last = self._batches[-1]
            fits = len(last.events) + len(batch.events) <= self._max_rows and last.size + batch.size <= self._max_bytes
            if fits and not last.is_last:
                last.absorb(batch)
                return
        self._batches.append(batch)

    def take(self, timeout_s: float) -> Batch | None:
        """The next batch; one without events if only the position moved; None if nothing came in time.

        Raises: what `close` was called with.
        """
        with self._changed:
            if not self._batches and not self._position and not self._is_closed:
                self._changed.wait(timeout_s)
            if self._batches:
                batch = self._batches.popleft()
                self._bytes -= batch.size
                metrics.QUEUE_BYTES.set(self._bytes)
                self._changed.notify_all()
                return batch
            if self._position:
                batch = Batch(end_lsn=self._position)
                self._position = ZERO
                return batch
            if self._closed is not None:
                raise self._closed
            return None

    def upcoming(self) -> Batch | None:
        """The batch that comes out next, if nothing will be added to it any more."""
        with self._changed:
            if len(self._batches) > 1 or (self._batches and self._batches[0].is_last):
                return self._batches[0]
            return None

    @property
    def is_empty(self) -> bool:
        """Nothing is waiting."""
        return not self._batches

    @property
    def is_full(self) -> bool:
        """The receiver has to stop reading."""
        return self._bytes >= 2 * self._max_bytes

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until the receiver may read on; False if it still may not."""
        with self._changed:
            if self.is_full and not self._is_closed:
                self._changed.wait(timeout_s)
            return not self.is_full

    def close(self, reason: BaseException | None = None) -> None:
        """Nothing more will come; what is in it can still be taken."""
        with self._changed:
            if not self._is_closed:
                self._is_closed, self._closed = True, reason
            self._changed.notify_all()
