"""How many changes went in: counted as they are applied, told once they are committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from replicator import metrics
from replicator.model.change import Op
from replicator.model.schema import TableName, show_table
from replicator.postgres.connection import Connection
from replicator.routing.idmap import Unmapped
from replicator.target.state import add_rows_applied


class Tally:
    """Of one stream. A transaction that is rolled back, and the stream with it, is never told."""

    def __init__(self) -> None:
        self._changes: Counter[tuple[Op, TableName]] = Counter()  # not committed yet
        self._unmapped: set[Unmapped] = set()
        self._rows: Counter[TableName] = Counter()  # committed, not stored yet

    def add(self, changes: Mapping[tuple[Op, TableName], int], unmapped: Iterable[Unmapped] = ()) -> None:
        """These were applied, in a transaction that is still open or has just been committed."""
        self._changes.update(changes)
        self._unmapped.update(unmapped)

    def committed(self) -> None:
        """All that was added is committed."""
        for (op, table), count in self._changes.items():
            metrics.CHANGES.labels(table=show_table(table), op=op.value).inc(count)
            self._rows[table] += count
        for unmapped in self._unmapped:
            metrics.UNMAPPED_IDS.labels(map=unmapped.map).inc()
        self._changes.clear()
        self._unmapped.clear()

    @property
    def has_rows(self) -> bool:
        """Whether there is anything to store."""
        return bool(self._rows)

    def store(self, conn: Connection, slot: str) -> None:
        """Add the rows to the target's state; they are forgotten with `stored`."""
        add_rows_applied(conn, slot, self._rows)

    def stored(self) -> None:
        """What `store` wrote is committed."""
        self._rows.clear()
