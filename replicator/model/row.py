"""Rows in PostgreSQL's binary wire form.

A *field* is ``bytes``: a 4-byte big-endian length and that many bytes, exactly as ``COPY … (FORMAT binary)``
writes it and as pgoutput with ``binary 'true'`` sends it behind its kind byte.
"""

from __future__ import annotations

from typing import Final

Field = bytes
Row = tuple[Field, ...]  # one field per column, in the order of the table or route at hand

NULL: Final[Field] = b"\xff\xff\xff\xff"

# An UPDATE did not touch this TOASTed value, so the source did not send it. Shorter than any real field,
# so it can never be mistaken for one, and never for NULL.
UNCHANGED: Final[Field] = b"u"


def field(value: bytes) -> Field:
    """The field that holds ``value`` (binary wire form of one non-null datum)."""
    return len(value).to_bytes(4, "big") + value
