"""SIGINT and SIGTERM while a cutover runs: they undo it, but never in the middle of an undo or a hand-over."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While entered, the first signal raises KeyboardInterrupt in the main thread; inside `deferred` none does.

    Outside the main thread it changes nothing: signals do not arrive there.
    """

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, Any] = {}
        self._deferred = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {each: signal.signal(each, self._handle) for each in _SIGNALS}
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A stretch that must run to its end, whoever is impatient."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if not self._deferred:
            self._deferred = True  # an impatient second one must not disturb what the first one set off
            raise KeyboardInterrupt
