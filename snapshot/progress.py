"""How far the copying is: for progress bars and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from replicator import metrics
from replicator.model.schema import TableName, show_table
from replicator.postgres.connection import Connection, query
from snapshot.copy import CopyResult
from snapshot.plan import TableCopy

State = Literal["pending", "copying", "indexing", "copied"]


@dataclass(frozen=True, slots=True)
class TableProgress:
    """One table. ``rows_estimated`` is a guess: it may be less than ``rows_done``."""

    name: TableName
    state: State
    rows_done: int
    rows_estimated: int


@dataclass(frozen=True, slots=True)
class Progress:
    """All tables of the run, in the order of the plan."""

    tables: tuple[TableProgress, ...]

    @property
    def rows_done(self) -> int:
        """Rows copied so far, uncommitted ones included."""
        return sum(table.rows_done for table in self.tables)

    @property
    def rows_estimated(self) -> int:
        """Rows expected in all; never less than are done."""
        return sum(max(table.rows_estimated, table.rows_done) for table in self.tables)

    @property
    def finished(self) -> bool:
        """Every table is copied, its indexes and statistics included."""
        return all(table.state == "copied" for table in self.tables)


class Tracker:
    """Gathers what is known, sets the metrics, tells ``report``."""

    def __init__(self, copies: Mapping[TableName, TableCopy], report: Callable[[Progress], None] | None) -> None:
        """Every table of ``copies`` is pending."""
        self._tables = {name: TableProgress(name, "pending", 0, copy.rows_estimate) for name, copy in copies.items()}
        self._committed = dict.fromkeys(copies, 0)
        self._names = {copy.route.target.oid: name for name, copy in copies.items()}
        self._report = report
        for name, copy in copies.items():
            metrics.SNAPSHOT_ROWS_ESTIMATED.labels(table=show_table(name)).set(copy.rows_estimate)
            metrics.set_table_state(show_table(name), "pending")

    def enter(self, name: TableName, state: State) -> None:
        """A table has come to another state."""
        if name in self._tables:
            self._tables[name] = replace(self._tables[name], state=state)
        # To the outside a table is being copied until its indexes are back.
        metrics.set_table_state(show_table(name), "copying" if state == "indexing" else state)

    def add(self, result: CopyResult) -> None:
        """A part is committed."""
        self._committed[result.table] += result.rows
        self._advance(result.table, self._committed[result.table])
        for name, count in result.new_unmapped.items():
            metrics.UNMAPPED_IDS.labels(map=name).inc(count)

    def poll(self, conn: Connection) -> None:
        """Ask the target how far the running parts are."""
        rows = query(
            conn,
            """
            SELECT relid::bigint, sum(tuples_processed)::bigint FROM pg_catalog.pg_stat_progress_copy
            WHERE datname = pg_catalog.current_database() AND command = 'COPY FROM' AND relid = ANY (%s::oid[])
            GROUP BY relid
            """,
            list(self._names),
        )
        for oid, running in rows:
            name = self._names[oid]
            self._advance(name, self._committed[name] + running)

    def publish(self) -> None:
        """Tell ``report``."""
        if self._report is not None:
            self._report(Progress(tuple(self._tables.values())))

    def _advance(self, name: TableName, rows: int) -> None:
        table = self._tables[name]
        # A part is in neither figure between the end of its COPY and its commit: never go back.
        if rows > table.rows_done:
            metrics.SNAPSHOT_ROWS.labels(table=show_table(name)).inc(rows - table.rows_done)
            self._tables[name] = replace(table, rows_done=rows)
