"""Batches into the target: one transaction each, with the checkpoint inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import psycopg
from psycopg import errors, pq
from psycopg.errors import error_from_result

from replicator import metrics
from replicator.errors import RowRejected, StateError
from replicator.failpoints import failpoint
from replicator.model.change import Op
from replicator.model.row import Row
from replicator.model.schema import TableName
from replicator.postgres.connection import Connection, Statement, query
from replicator.postgres.copy import CopyIn
from replicator.postgres.diagnosis import object_at_fault
from replicator.routing.idmap import IdMaps
from replicator.routing.order import levels
from replicator.routing.route import Route
from replicator.stream.batch import Batch, Coalesced, Event, Truncation, Unmap, coalesce
from replicator.stream.compose import Composer, Step, has_deletes
from replicator.stream.relations import RoutedTable
from replicator.stream.remap import OpenSource, remap, unmap
from replicator.target.idmaps import record_unmapped, remove_entries, store_entries
from replicator.target.statements import register

# From this many rows on a COPY, which costs a round trip of its own, beats INSERT … FROM unnest.
_COPY_FROM_ROWS = 100
# Ordered changes travel in pipelines of this many statements: enough to hide the round trip.
_PIPELINE_STATEMENTS = 200
# A batch that fails as a set is cut into runs of this length, of which most are good as sets.
_REPLAY_EVENTS = 200


class _Miscount(Exception):
    """A statement hit another number of rows than it should."""

    def __init__(self, table: str, op: Op, expected: int, found: int) -> None:
        super().__init__(f"{op.value} on {table} hit {found} rows instead of {expected}")


_CURABLE = (_Miscount, errors.IntegrityError, errors.DataError)


class Applier:
    """Applies batches: `apply` the events, then `commit` with the checkpoint.

    Set-wise first; when that hits an integrity error or an unexpected number of rows, the batch is rolled back and
    applied again one change at a time, in source order. Only an error that persists then is real.
    """

    def __init__(
        self, conn: Connection, routes: Sequence[Route], *, maps: IdMaps, open_source: OpenSource, replica_role: bool
    ) -> None:
        """``conn`` is in autocommit mode. ``replica_role``: no trigger and no foreign key acts in this session."""
        register(conn)
        # One generic plan per statement: it knows nothing of the number of rows, and so stays with the key's index.
        conn.execute("SET plan_cache_mode = force_generic_plan")
        conn.prepare_threshold, conn.prepared_max = 0, 10_000
        self._conn = conn
        self._routes = routes
        self._maps = maps
        self._open_source = open_source
        self._replica_role = replica_role
        self._begun = False
        self._composer = Composer(routes, replica_role=replica_role)
        order = [name for level in levels([route.target for route in routes]) for name in level]
        self._position: dict[TableName, int] = {name: at for at, name in enumerate(order)}
        self._handing_on: set[tuple[str, str]] = set()  # tables whose rows pass unique values to each other

    def apply(self, batch: Batch) -> Counter[tuple[Op, TableName]]:
        """Apply all events of ``batch`` in the open transaction, or in a new one.

        Returns: changes by operation and target table.

        Raises:
            RowRejected: the target refuses a row, or a change does not find its row.
        """
        # Only behind earlier parts of the same transaction: a savepoint is a round trip and a subtransaction.
        behind_parts = self._begun
        if behind_parts:
            self._conn.execute("SAVEPOINT batch")
        try:
            failpoint("before_batch", self._conn)
            self._apply_coalesced(batch.events)
            failpoint("after_batch", self._conn)
        except _CURABLE as exc:
            metrics.BATCH_REPLAYS.inc()
            self._undo(behind_parts)
            if not (self._learn(exc) and self._applied_again(batch.events)):
                self._replay(batch.events)
        if behind_parts:
            # Or they would nest, one deeper with every part.
            self._conn.execute("RELEASE SAVEPOINT batch")
        self._write_maps(batch)
        return _count(batch.events)

    def commit(self, checkpoint: Statement, parameters: tuple[object, ...]) -> None:
        """Store the checkpoint and commit it with everything that has been applied: one round trip.

        Raises:
            StateError: there is no row to store it in.
        """
        failpoint("before_commit", self._conn)
        with self._conn.pipeline():
            self.begin()
            cursor = self._conn.execute(checkpoint, parameters, prepare=True)
            self._conn.execute("COMMIT")
        failpoint("after_commit", self._conn)
        self._begun = False
        if cursor.rowcount != 1:
            raise StateError("the checkpoint is gone: somebody has removed it while the stream was running")

    def rollback(self) -> None:
        """Forget what has been applied since the last commit."""
        if self._begun:
            self._begun = False
            self._roll_back("ROLLBACK")

    def begin(self) -> None:
        """Open a transaction, unless one is open."""
        if not self._begun:
            self._conn.execute("BEGIN")
            self._begun = True

    def _undo(self, to_savepoint: bool) -> None:
        if to_savepoint:
            self._roll_back("ROLLBACK TO SAVEPOINT batch")
        else:
            self.rollback()

    def _roll_back(self, statement: str) -> None:
        """Below psycopg, which forgets its prepared statements at every ROLLBACK.

        The server keeps them; planning one for a partitioned table anew takes longer than what it does.
        """
        result = self._conn.pgconn.exec_(statement.encode())
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise error_from_result(result)

    def _learn(self, exc: Exception) -> bool:
        """From a unique violation, that rows of this table hand unique values on; False if that was known.

        PostgreSQL checks uniqueness row by row within an UPDATE, so values that change hands collide there. They do
        not when all those rows are deleted first and inserted again: the same, where no trigger and foreign key acts.
        """
        if not self._replica_role or not isinstance(exc, errors.UniqueViolation):
            return False
        rows = query(
            self._conn,
            """
            SELECT n.nspname::text, c.relname::text
            FROM pg_catalog.pg_class l
            JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace
            JOIN pg_catalog.pg_class c ON c.oid = coalesce(pg_catalog.pg_partition_root(l.oid), l.oid)
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE ln.nspname = %s AND l.relname = %s
            """,
            exc.diag.schema_name,
            exc.diag.table_name,
        )
        new = set(rows) - self._handing_on
        self._handing_on |= new
        return bool(new)

    def _applied_again(self, events: Sequence[Event]) -> bool:
        """Try as sets once more; False, and undone, if that fails too."""
        self.begin()
        self._conn.execute("SAVEPOINT batch")
        try:
            self._apply_coalesced(events)
        except _CURABLE as exc:
            self._undo(to_savepoint=True)
            return self._learn(exc) and self._applied_again(events)
        self._conn.execute("RELEASE SAVEPOINT batch")
        return True

    def _apply_coalesced(self, events: Sequence[Event]) -> None:
        for segment in coalesce(events, key_changes=self._replica_role):
            if isinstance(segment, dict):
                self._apply_set_wise(segment)
            else:
                self._apply_ordered(segment)

    def _replay(self, events: Sequence[Event]) -> None:
        """In source order: in short runs, of which most are still good as sets; the others one change at a time."""
        self.begin()
        for start in range(0, len(events), _REPLAY_EVENTS):
            run = events[start : start + _REPLAY_EVENTS]
            self._conn.execute("SAVEPOINT batch")
            for apply in (self._apply_coalesced, self._apply_ordered):
                try:
                    apply(run)
                except _CURABLE:
                    self._undo(to_savepoint=True)
                else:
                    break
            else:
                self._one_by_one(run)  # names the change at fault
            self._conn.execute("RELEASE SAVEPOINT batch")

    def _write_maps(self, batch: Batch) -> None:
        """Store what the batch did to lookups, and the IDs that it could not map."""
        if batch.map_changes:
            self.begin()
            for (name, source_id), target_id in batch.map_changes.items():
                if target_id is None:
                    remove_entries(self._conn, name, [source_id])
                else:
                    store_entries(self._conn, name, {source_id: target_id})
        if batch.unmapped:
            self.begin()
            record_unmapped(self._conn, batch.unmapped)
        if batch.remap:
            self.begin()
            remap(self._conn, self._routes, self._maps, self._open_source)

    def _apply_set_wise(self, nets: Coalesced) -> None:
        """Deletes, children first; then per table, parents first, updates and inserts."""
        for table, net in nets.items():
            if table.route.name in self._handing_on and table.covers_target:
                net.rewrite(tuple(range(table.width)), table.key_of)
        parents_first = sorted(nets.items(), key=lambda item: self._position[item[0].route.name])
        compose = self._composer
        waiting: list[Step] = []
        for table, net in reversed(parents_first):
            waiting += compose.deletes(table, net)
        for table, net in parents_first:
            waiting += compose.updates(table, net)
            if len(net.inserts) < _COPY_FROM_ROWS:
                waiting += compose.inserts(table, net.inserts)
            else:
                self._run(waiting)
                waiting = []
                self._copy(table, net.inserts)
        self._run(waiting)

    def _copy(self, table: RoutedTable, rows: list[Row]) -> None:
        self.begin()
        copy = CopyIn(self._conn, self._composer.statements(table).copy)
        count = len(rows[0]).to_bytes(2, "big")
        for row in rows:
            copy.write(count + b"".join(row))
        taken = copy.finish()
        if taken != len(rows):
            raise _Miscount(str(table), Op.INSERT, len(rows), taken)

    def _run(self, steps: list[Step]) -> None:
        """Run steps in one pipeline and check what they hit."""
        if not steps:
            return
        cursors = []
        with self._conn.pipeline():
            self.begin()
            for step in steps:
                cursor = self._conn.cursor()
                cursor.execute(step.statement, step.parameters, prepare=True)
                cursors.append(cursor)
        for step, cursor in zip(steps, cursors, strict=True):
            if step.expected is not None and cursor.rowcount != step.expected:
                raise _Miscount(step.table, step.op, step.expected, cursor.rowcount)

    def _one_by_one(self, events: Sequence[Event]) -> None:
        deletes = has_deletes(events)
        for event in events:
            if isinstance(event, Unmap):
                self._unmap(event)
                continue
            steps = self._composer.in_order(event, deletes=deletes)
            try:
                self._run(steps)
            except _Miscount as exc:
                raise RowRejected(
                    f"target: {exc}", hint="somebody else has changed the target; `replicator verify` shows where"
                ) from None
            except _CURABLE as exc:
                # Not chained: the driver's message quotes values in its detail.
                raise _rejected(exc, steps[0]) from None

    def _apply_ordered(self, events: Sequence[Event]) -> None:
        deletes = has_deletes(events)
        waiting: list[Step] = []
        for event in events:
            if isinstance(event, Unmap):
                self._run(waiting)
                waiting = []
                self._unmap(event)
                continue
            waiting += self._composer.in_order(event, deletes=deletes)
            if len(waiting) >= _PIPELINE_STATEMENTS:
                self._run(waiting)
                waiting = []
        self._run(waiting)

    def _unmap(self, event: Unmap) -> None:
        self.begin()
        unmap(self._conn, self._routes, event.map, event.source_id, event.target_id)


def _count(events: Sequence[Event]) -> Counter[tuple[Op, TableName]]:
    # A pass per operation: hashing an Enum is Python code, and would be done once per event.
    by_name: Counter[tuple[Op, TableName]] = Counter()
    rows = [event for event in events if type(event) is tuple]
    for op in (Op.INSERT, Op.UPDATE, Op.DELETE):
        for table, count in Counter([event[1] for event in rows if event[0] is op]).items():
            by_name[op, table.route.name] += count
    for event in events:
        if isinstance(event, Truncation):
            by_name.update((Op.TRUNCATE, table.route.name) for table in event.tables)
    return by_name


def _rejected(exc: Exception, step: Step) -> RowRejected:
    """What the target refused, by names alone: the server's detail holds values."""
    assert isinstance(exc, psycopg.Error)
    what = object_at_fault(exc)
    where = f" ({what})" if what else ""
    return RowRejected(
        f"target: {step.table} refuses an {step.op.value}{where}: {type(exc).__name__}, {exc.sqlstate}",
        hint="mend the target's column or constraint, then start again: the change will be sent again",
    )
