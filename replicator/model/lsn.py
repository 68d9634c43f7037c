"""Positions in the write-ahead log."""

from __future__ import annotations

from typing import Self


class Lsn(int):
    """A byte position in the WAL, 64-bit; prints as PostgreSQL's ``16/B374D848``."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``XXX/XXX`` (two hexadecimal halves).

        Raises:
            ValueError: not of that form.
        """
        high, _, low = text.partition("/")
        if not (1 <= len(high) <= 8 and 1 <= len(low) <= 8):
            raise ValueError(f"not an LSN: {text!r}")
        return cls(int(high, 16) << 32 | int(low, 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn('{self}')"


ZERO = Lsn(0)
