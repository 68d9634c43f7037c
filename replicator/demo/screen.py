"""Progress of the demo: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

from rich.console import Console
from rich.status import Status
from rich.text import Text

_PLAIN_EVERY_S: Final = 5.0


class Step:
    """One step under way. ``result`` stays on the screen when it is over."""

    def __init__(self, console: Console, title: str, status: Status | None) -> None:
        self.result = ""
        self._console = console
        self._title = title
        self._status = status
        self._next_line = time.monotonic() + _PLAIN_EVERY_S

    def show(self, text: str) -> None:
        """Replace the live line; without a terminal, one line every 5 s."""
        if self._status is not None:
            self._status.update(Text(f"{self._title}: {text}"))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _PLAIN_EVERY_S
            self._console.print(Text(f"{'':>18}{text}"), soft_wrap=True)


class Screen:
    """Where the demo prints."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show ``title`` while the body runs; then how long it took and its result, or that it failed."""
        started = time.monotonic()
        live = self.console.status(Text(title)) if self.console.is_terminal else nullcontext()
        word, style = "failed", "bold red"
        step = Step(self.console, title, None)
        try:
            with live as status:
                step = Step(self.console, title, status)
                yield step
            word, style = "ok", "green"
        finally:
            seconds = time.monotonic() - started
            line = Text.assemble((f"{word:>6}", style), f" {seconds:5.1f} s  ", (title, "bold"))
            self.console.print(line.append(f": {step.result}" if step.result else ""), soft_wrap=True)
