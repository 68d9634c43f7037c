# cython: language_level=3, annotation_typing=False
"""TupleData, the rows inside pgoutput's messages: the one loop that runs once per column.

It takes most of the time of decoding, so it is compiled where a C compiler is at hand: ``tuples.pxd`` beside this file
gives the types. Without one this very file runs as it is.
"""

from __future__ import annotations

from replicator.model.row import NULL, UNCHANGED, Field, Row


class TextField(bytes):
    """A field (length + value) whose value is in text form, kind byte ``t``.

    Sent only for types that have no binary send function.
    """

    __slots__ = ()


def tuple_data(data: bytes, pos: int) -> tuple[Row, int]:
    """The fields at ``pos`` and the offset behind them; −1 if their number or the kind of one is impossible.

    The last field may reach past the message: callers compare the offset with the length. An earlier one that does so
    makes the next read fail. Lengths are read unsigned, so a negative one is among those.

    Raises:
        IndexError: the message is too short.
    """
    count = data[pos] << 8 | data[pos + 1]
    pos += 2
    size = len(data)
    if count > 0x7FFF or count > size - pos:  # a column takes at least one byte
        return (), -1
    row: list[Field] = [NULL] * count
    for i in range(count):
        kind = data[pos]
        pos += 1
        if kind == 0x62:  # b
            # Shifted within a variable: its type in C has room for the highest bit.
            length = data[pos]
            length = length << 8 | data[pos + 1]
            length = length << 8 | data[pos + 2]
            end = pos + 4 + (length << 8 | data[pos + 3])
            row[i] = data[pos:end]
            pos = end
        elif kind == 0x75:  # u
            row[i] = UNCHANGED
        elif kind == 0x74:  # t
            length = data[pos]
            length = length << 8 | data[pos + 1]
            length = length << 8 | data[pos + 2]
            end = pos + 4 + (length << 8 | data[pos + 3])
            row[i] = TextField(data[pos:end])
            pos = end
        elif kind != 0x6E:  # n
            return (), -1
    return tuple(row), pos
