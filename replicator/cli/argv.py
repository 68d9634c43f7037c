"""Passwords on the command line, which whoever is on this machine can read with ``ps``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# Fields of /proc/PID/stat behind the name: where the kernel finds what it shows as the command line.
_ARG_START: Final = 45
_ARG_END: Final = 46


def with_password(words: Sequence[str]) -> list[str]:
    """The words that are, or hold, a DSN with a password."""
    # Imported late: `--help` needs no logger.
    from replicator.logs import redact

    return [word for word in words if redact(word) != word]


def hide(words: Sequence[str]) -> None:
    """Overwrite these arguments with asterisks in what the kernel shows of this process; where that is not Linux, no.

    The interpreter has its own copy. Between the start and this call they can be seen all the same.
    """
    try:
        fields = Path("/proc/self/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    except (OSError, ValueError, IndexError):
        return
    if not 0 < start < end:  # the kernel does not tell
        return
    shown = ctypes.string_at(start, end - start)
    for word in words:
        argument = b"\0" + word.encode("utf-8", "surrogateescape") + b"\0"
        at = shown.find(argument)
        if at >= 0:
            ctypes.memset(start + at + 1, ord("*"), len(argument) - 2)
