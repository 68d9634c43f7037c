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


# COPY … (FORMAT binary): signature, flags, length of the header extension.
COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER: Final = b"\xff\xff"


def split(data: bytes, start: int = 0) -> Row:
    """The fields of one COPY row: 2-byte column count at ``start``, then the fields."""
    from_bytes = int.from_bytes
    count = from_bytes(data[start : start + 2], "big")
    at = start + 2
    fields = []
    for _ in range(count):
        length = data[at : at + 4]
        if length == NULL:
            fields.append(NULL)
            at += 4
        else:
            end = at + 4 + from_bytes(length, "big")
            fields.append(data[at:end])
            at = end
    return tuple(fields)


def join(fields: Row) -> bytes:
    """One COPY row of these fields."""
    return len(fields).to_bytes(2, "big") + b"".join(fields)
