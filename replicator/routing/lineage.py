"""Which column of today's catalog a column of the stream is.

The stream may be days behind the catalog that the route was planned from, and it names columns as they were called
then. It sends them in the order of their attnums; the record knows the names that each of them has had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from replicator.model.schema import Table
from replicator.routing.record import TableRecord

GONE = 0  # in the place of an attnum: a column that is no more, whichever

_ENOUGH = 50  # ways to read a shape; there is only one, unless names were swapped


def trace(names: Sequence[str], table: Table, record: TableRecord | None) -> tuple[int, ...] | None:
    """The attnum of each column of a shape, `GONE` for one that was dropped since.

    Args:
        names: as the stream sends them.
        table: the source's, as the catalog has it.
        record: None: only today's names are known.

    Returns:
        None where that cannot be told: the shape is newer than the catalog, or there is more than one way to read it.
    """
    ways = {
        tuple(attnum if attnum in table.by_attnum else GONE for attnum in way)
        for way in islice(_Shapes(table, record).read(names), _ENOUGH)
    }
    return ways.pop() if len(ways) == 1 else None


def is_guess(names: Sequence[str], table: Table, record: TableRecord | None) -> bool:
    """Whether a shape has names that are not known, and so was read by their places alone."""
    known = {column.name for column in table.columns}
    if record is not None:
        known.update(name for column in record.columns for name in column.names)
    return not known.issuperset(names)


class _Shapes:
    """All ways to read a shape that names, order and the record allow."""

    def __init__(self, table: Table, record: TableRecord | None) -> None:
        live = {column.attnum: {column.name} for column in table.columns if not column.generated}
        known = record.by_attnum if record is not None else {}
        for attnum, column in known.items():
            live.setdefault(attnum, set()).update(column.names)
        self._by_name: dict[str, list[int]] = {}
        for attnum in sorted(live):
            for name in live[attnum]:
                self._by_name.setdefault(name, []).append(attnum)
        # Columns that came after the copy may have had any name before we met them.
        later = {attnum for attnum, column in known.items() if not column.copied}
        new = set() if record is None else {*live, *table.dropped} - known.keys()
        self._unmet = sorted(later | new)
        self._always = {attnum for attnum, column in known.items() if column.copied and attnum in table.by_attnum}

    def read(self, names: Sequence[str]) -> Iterator[tuple[int, ...]]:
        for way in self._read(names, 0):
            if self._always.issubset(way):
                yield way

    def _read(self, names: Sequence[str], behind: int) -> Iterator[tuple[int, ...]]:
        if not names:
            yield ()
            return
        for attnum in self._by_name.get(names[0], self._unmet):
            if attnum > behind:
                for rest in self._read(names[1:], attnum):
                    yield (attnum, *rest)
