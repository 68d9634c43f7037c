"""The worker's side: copy a table, a range of its pages or several small ones, in one transaction of the target.

Runs in processes of its own: whatever this module imports is loaded once for each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import psycopg
from psycopg import errors, sql

from replicator.errors import ReplicatorError, RowRejected, TransientError, UnmappedId
from replicator.failpoints import failpoint
from replicator.model.schema import TableName, show_tables
from replicator.postgres.connection import Connection, table_identifier, translate, translated
from replicator.postgres.copy import CopyIn, copy_out
from replicator.postgres.diagnosis import object_at_fault
from replicator.routing.idmap import Unmapped
from replicator.routing.mapper import Mapper
from replicator.routing.route import Route
from replicator.routing.wire import fit
from replicator.target import idmaps, parts, state
from snapshot.maps import MAPS
from snapshot.plan import PageRange
from snapshot.session import Run, begin_reading, session

_LOCK_TIMEOUT = "2s"


@dataclass(frozen=True, slots=True)
class Part:
    """A table, or one range of its pages."""

    route: Route  # as `portable` made it
    number: int  # among the parts of the table
    pages: PageRange | None  # None: the whole table
    attempt: int  # of table_state: whoever empties the table raises it


@dataclass(frozen=True, slots=True)
class CopyTask:
    """One part of a table, or several small tables. Plain data: it travels to another process."""

    run: Run
    snapshot_name: str
    parts: tuple[Part, ...]
    replica: bool  # the target's role may turn off triggers and foreign keys


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What one part has put into the target, committed."""

    table: TableName
    rows: int
    size: int  # bytes, in binary COPY format
    new_unmapped: Mapping[str, int]  # by map: source IDs met for the first time


def portable(route: Route) -> Route:
    """The route without its compiled rewrites, which cannot be sent to another process."""
    return replace(route, columns=tuple(replace(column, rewrite=None) for column in route.columns))


def compiled(route: Route) -> Route:
    """The route with its rewrites compiled again."""
    return replace(
        route,
        columns=tuple(
            replace(column, rewrite=fit(column.source.type, column.target.type).rewrite) for column in route.columns
        ),
    )


def copy_parts(task: CopyTask) -> list[CopyResult]:
    """Copy what ``task`` names and commit it, in one transaction.

    Raises:
        TransientError: a session was lost, or another snapshot has taken a table over.
        RowRejected: the target refuses a row.
        UnmappedId: as the map's policy says.
    """
    try:
        with session(task.run, "source", "copy") as source, session(task.run, "target", "copy") as target:
            with translated("source"):
                begin_reading(source, task.snapshot_name)
                _enter(source, [part.route for part in task.parts])
            return _Copy(task, source, target).run()
    except ReplicatorError as exc:
        # The driver's error holds values of rows, and a process sends its traceback home as text.
        exc.__cause__ = exc.__context__ = None
        raise


def _enter(source: Connection, routes: Sequence[Route]) -> None:
    """Take a reader's locks, without waiting for long: whoever is in front of us waits for the snapshot's own lock.

    That would be for ever. Given up and begun again, the snapshot lets the ALTER TABLE pass in between.
    """
    tables = sql.SQL(", ").join(_from(route) for route in routes)
    try:
        source.execute(
            sql.SQL(
                "SET LOCAL lock_timeout = {}; LOCK TABLE {} IN ACCESS SHARE MODE; SET LOCAL lock_timeout = 0"
            ).format(sql.Literal(_LOCK_TIMEOUT), tables)
        )
    except errors.LockNotAvailable as exc:
        names = show_tables(route.source.name for route in routes)
        raise TransientError(
            f"source: a table is about to be altered ({names}): the copy begins anew behind that"
        ) from exc


class _Copy:
    """One task on its two sessions. Nothing is cleaned up on errors: closing the sessions does that."""

    def __init__(self, task: CopyTask, source: Connection, target: Connection) -> None:
        self._task = task
        self._source = source
        self._target = target

    def run(self) -> list[CopyResult]:
        task, slot = self._task, self._task.run.slot
        keys = [(part.route.name, part.attempt, part.number) for part in task.parts]
        with translated("target"):
            self._target.execute("BEGIN; SET LOCAL session_replication_role = replica" if task.replica else "BEGIN")
            self._hold_attempts()
            done = parts.start_parts(self._target, slot, keys)
            if done is not None:
                self._target.execute("ROLLBACK")
                return [CopyResult(name, *each, {}) for (name, *_), each in zip(keys, done, strict=True)]
        results = [self._copy(part) for part in task.parts]
        with translated("target"):
            parts.finish_parts(self._target, slot, keys, [(result.rows, result.size) for result in results])
        try:
            failpoint("before_part", self._target)
            self._target.execute("COMMIT")
            failpoint("after_part", self._target)
        except psycopg.Error as exc:
            # Constraints that were deferred.
            raise refusal(self._table_of(exc), exc) or translate(exc, "target") from exc
        return results

    def _table_of(self, exc: psycopg.Error) -> Route:
        """Whose constraint an error tells of, as far as it does."""
        routes = [part.route for part in self._task.parts]
        named = (exc.diag.schema_name, exc.diag.table_name)
        return next((route for route in routes if route.name == named), routes[0])

    def _hold_attempts(self) -> None:
        found = state.hold_attempts(self._target, self._task.run.slot, [part.route.name for part in self._task.parts])
        for part in self._task.parts:
            if found.get(part.route.name) != part.attempt:
                raise TransientError(f"table {part.route} was taken over by another snapshot")

    def _copy(self, part: Part) -> CopyResult:
        route = compiled(part.route)
        mapper = self._mapper(route)
        try:
            rows, size = self._fill(route, part.pages, mapper)
            new = _record(self._target, mapper.take_unmapped()) if mapper else {}
        except psycopg.Error as exc:
            raise refusal(route, exc) or translate(exc, "target") from exc
        return CopyResult(route.name, rows, size, new)

    def _mapper(self, route: Route) -> Mapper | None:
        if route.is_verbatim:
            return None
        maps = MAPS.get(self._task.run, route.maps, self._source, self._target)
        return Mapper(route, route.source_columns, maps)

    def _fill(self, route: Route, pages: PageRange | None, mapper: Mapper | None) -> tuple[int, int]:
        sink = CopyIn(self._target, _copy_in(route))
        try:
            sent = _pump(_read(self._source, _copy_out(route, pages)), sink, mapper)
        except UnmappedId:
            assert mapper is not None
            # Nothing of the table stays, but whom to look for does.
            sink.cancel()
            self._target.execute("ROLLBACK")
            idmaps.record_unmapped(self._target, mapper.take_unmapped())
            raise
        taken = sink.finish()
        if taken != sent:
            raise RowRejected(
                f"{route}: {sent} rows were sent and {taken} came in: a trigger of the target leaves rows out",
                hint="disable the trigger while the replicator runs",
            )
        return taken, sink.bytes_written


def _pump(rows: Iterable[bytes], sink: CopyIn, mapper: Mapper | None) -> int:
    """Every row from here to there; how many. The hot loop of phase one: two lookups a row are worth avoiding."""
    count = 0
    write = sink.write
    if mapper is None:
        for row in rows:
            write(row)
            count += 1
    else:
        to_target = mapper.copy_row
        for row in rows:
            write(to_target(row))
            count += 1
    return count


def _read(conn: Connection, statement: sql.Composable) -> Iterator[bytes]:
    """`copy_out` with errors that tell the source's from the target's."""
    with translated("source"):
        yield from copy_out(conn, statement)


def _copy_out(route: Route, pages: PageRange | None) -> sql.Composed:
    columns = sql.SQL(", ").join(sql.Identifier(name) for name in route.source_columns)
    where = sql.Composed([])
    if pages is not None:
        where += sql.SQL(" WHERE ctid >= {}::pg_catalog.tid").format(sql.Literal(f"({pages.first},0)"))
        if pages.end is not None:
            where += sql.SQL(" AND ctid < {}::pg_catalog.tid").format(sql.Literal(f"({pages.end},0)"))
    return sql.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT (FORMAT binary)").format(columns, _from(route), where)


def _from(route: Route) -> sql.Composed:
    """ONLY: children by inheritance are tables of their own; a partitioned table has no rows but its partitions'."""
    only = sql.SQL("" if route.source.kind == "p" else "ONLY ")
    return only + table_identifier(route.source.name)


def _copy_in(route: Route) -> sql.Composed:
    columns = sql.SQL(", ").join(sql.Identifier(name) for name in route.target_columns)
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(table_identifier(route.name), columns)


def _record(conn: Connection, unmapped: set[Unmapped]) -> dict[str, int]:
    by_map: dict[str, list[Unmapped]] = {}
    # Sorted, so that parts of one table that meet the same IDs wait for each other instead of locking each other out.
    for each in sorted(unmapped):
        by_map.setdefault(each.map, []).append(each)
    return {name: idmaps.record_unmapped(conn, found) for name, found in by_map.items()}


_REASONS = {
    "22001": "a value is too long",
    "22003": "a number is out of range",
    "22008": "a time is out of range",
    "22P02": "a value is not valid for its type; has the target every label of the source's enums?",
    "22P03": "a value is not valid for its type",
    "23502": "it is NOT NULL and a row holds NULL",
    "23503": "a row references one that is not there",
    "23505": "two rows share a key that must be unique",
    "23514": "a row violates a check constraint, or no partition takes it",
    "P0001": "a trigger refuses a row",
}


def refusal(route: Route, exc: psycopg.Error) -> RowRejected | None:
    """The error for a row that the target does not take; None if ``exc`` has another cause.

    The server's own message is left out: it may quote the value.
    """
    code = exc.sqlstate or ""
    if code[:2] not in ("22", "23", "54", "P0"):
        return None
    where = str(route)
    if (column := _column_at_fault(exc)) in route.target_columns:
        where += f".{column}"
    if exc.diag.constraint_name and object_at_fault(exc):
        where += f" ({exc.diag.constraint_name})"
    return RowRejected(
        f"{where}: the target refuses a row: {_REASONS.get(code, 'it breaks a rule of the table')} ({code})",
        hint="mend the row on the source or widen the target's column, then start again",
    )


def _column_at_fault(exc: psycopg.Error) -> str:
    """From the column field of the message, or from its context: ``COPY t, line 3, column c``."""
    if exc.diag.column_name:
        return exc.diag.column_name
    first_line = (exc.diag.context or "").partition("\n")[0]
    return first_line.rpartition(", column ")[2]
