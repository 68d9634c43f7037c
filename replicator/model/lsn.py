"""Positions in the write-ahead log."""

from __future__ import annotations

import re
from typing import Final, Self

_TEXT: Final = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class Lsn(int):
    """A byte position in the WAL, 64-bit; prints as PostgreSQL's ``16/B374D848``."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``XXX/XXX`` (two hexadecimal halves).

        Raises:
            ValueError: not of that form.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not an LSN: {text!r}")
        return cls(int(match[1], 16) << 32 | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn('{self}')"


ZERO = Lsn(0)
