"""Batches into the target: one transaction each, with the checkpoint inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from psycopg import errors

from replicator import metrics
from replicator.errors import RowRejected
from replicator.failpoints import failpoint, is_armed
from replicator.model.change import Op
from replicator.model.schema import TableName
from replicator.postgres.connection import Connection, query
from replicator.postgres.pipeline import Prepared
from replicator.routing.idmap import IdMaps
from replicator.routing.order import levels
from replicator.routing.route import Route
from replicator.stream.batch import Batch, Coalesced, Event, Ordered, Truncation, Unmap, coalesce, count_changes, runs
from replicator.stream.compose import Composer, Copy, Step, has_deletes
from replicator.stream.quarantine import Quarantine
from replicator.stream.refusals import REFUSALS, Miscount, is_of_checkpoint, refused, refused_by_constraint
from replicator.stream.remap import OpenSource, remap, unmap
from replicator.stream.retry import Group, outcome, settle
from replicator.stream.transaction import Transaction
from replicator.target.idmaps import record_unmapped, remove_entries, store_entries
from replicator.target.rowtypes import make_row_types
from replicator.target.statements import register

# A batch of fewer changes may be sent together with its commit.
_SMALL = 100
# Ordered changes travel in pipelines of this many statements: enough to hide the round trip.
_PIPELINE_STATEMENTS = 200
# A batch that fails as a set is cut into runs of this length, of which most are good as sets.
_REPLAY_EVENTS = 200

# Look at deferred constraints now, then defer them again.
_CHECK = "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED;"

_CURABLE = (Miscount, *REFUSALS)
_REFUSED = (RowRejected, *_CURABLE)  # some refusals are ours, before anything is sent


class Applier:
    """Applies batches: `apply` the events, then `commit` with the checkpoint.

    Set-wise first; when that hits an integrity error or an unexpected number of rows, the batch is rolled back and
    applied again one change at a time, in source order. Only an error that persists then is real: it ends the stream,
    or its change is set aside in the quarantine.
    """

    def __init__(
        self,
        conn: Connection,
        routes: Sequence[Route],
        *,
        maps: IdMaps,
        open_source: OpenSource,
        replica_role: bool,
        quarantine: Quarantine,
        upcoming: Callable[[], Batch | None],
    ) -> None:
        """``conn`` is in autocommit mode. ``replica_role``: no trigger and no foreign key acts in this session;
        ``upcoming``: the batch to be applied next, as far as it is known.
        """
        register(conn)
        # One generic plan per statement: it knows nothing of the number of rows, and so stays with the key's index.
        conn.execute("SET plan_cache_mode = force_generic_plan")
        self._conn = conn
        self._transaction = Transaction(conn, routes, replica_role=replica_role, meanwhile=self._look_ahead)
        self._upcoming = upcoming
        self._routes = routes
        self._maps = maps
        self._open_source = open_source
        self._replica_role = replica_role
        self._quarantine = quarantine
        self._curable = _REFUSED if quarantine.takes else _CURABLE
        self._row_types = make_row_types(conn, [route.target for route in routes])
        self._composer = Composer(routes, replica_role=replica_role, row_types=self._row_types)
        order = [name for level in levels([route.target for route in routes]) for name in level]
        self._position: dict[TableName, int] = {name: at for at, name in enumerate(order)}
        self._handing_on: set[tuple[str, str]] = set()  # tables whose rows pass unique values to each other

    def apply(self, batch: Batch, *, checked: bool = False) -> Counter[tuple[Op, TableName]]:
        """Apply all events of ``batch`` in the open transaction, or in a new one.

        Args:
            checked: look at deferred constraints behind each source transaction already, not only at COMMIT.

        Returns: changes by operation and target table; those in quarantine are not among them.

        Raises:
            RowRejected: the target refuses a row, or a change does not find its row.
        """
        # Only behind earlier parts of the same transaction: a savepoint is a round trip and a subtransaction.
        behind_parts = self._transaction.is_open
        if behind_parts:
            self._transaction.execute("SAVEPOINT batch")
        self._quarantine.begin(batch)
        if checked:
            self._replay(batch, checked=True)
        else:
            self._apply_batch(batch, behind_parts)
        if behind_parts:
            # Or they would nest, one deeper with every part.
            self._transaction.execute("RELEASE SAVEPOINT batch")
        if batch.complete:
            self._try_again()
        counts = count_changes(batch.events)
        self._transaction.touch(table for _, table in counts)
        counts.subtract(self._quarantine.flush(self._composer.statements))
        self._write_maps(batch)
        return counts

    def _apply_batch(self, batch: Batch, behind_parts: bool) -> None:
        try:
            failpoint("before_batch", self._conn)
            events = self._quarantine.divert(batch.events)
            ready = batch.segments if events is batch.events else None
            self._apply_segments(ready or self._coalesce(events))
            failpoint("after_batch", self._conn)
        except self._curable as exc:
            metrics.BATCH_REPLAYS.inc()
            self._undo(to_savepoint=behind_parts)
            self._quarantine.rewind()
            if not (self._learn(exc) and self._applied_again(batch.events)):
                self._replay(batch)

    def commit(self, checkpoint: Prepared) -> None:
        """Store the checkpoint and commit it with everything that has been applied: one round trip.

        Raises:
            StateError: there is no row to store it in.
            DeferredRefusal: nothing is committed.
        """
        try:
            self._transaction.commit(checkpoint)
        except REFUSALS as exc:
            if is_of_checkpoint(exc):
                raise
            # Not chained: the driver's message quotes values in its detail.
            raise refused_by_constraint(exc) from None

    def commit_at_once(self, batch: Batch, checkpoint: Prepared) -> Counter[tuple[Op, TableName]] | None:
        """`apply` and `commit` in one round trip, so that a lone transaction waits for no second one.

        Returns: as of `apply`; None, and nothing is done, if the batch is not of the kind, or the target refuses it.
        """
        is_plain = batch.complete and not (batch.is_last or batch.map_changes or batch.unmapped)
        if not (is_plain and 0 < len(batch.events) < _SMALL) or self._quarantine.holds or is_armed("after_batch"):
            return None
        segments = self._coalesce(batch.events)
        if len(segments) != 1 or not isinstance(segments[0], dict):
            return None
        counts = count_changes(batch.events)
        self._transaction.touch(table for _, table in counts)
        try:
            failpoint("before_batch", self._conn)
            # Too small for a COPY, all of them.
            steps = [step for step in self._steps(segments[0]) if isinstance(step, Step)]
            self._transaction.commit(checkpoint, steps)
        except REFUSALS as exc:
            if is_of_checkpoint(exc):
                raise
            return None
        return counts

    def attempt(self, events: Sequence[Event]) -> RowRejected | None:
        """Apply these to the open transaction, all or none, deferred constraints included; the refusal, if any."""
        self._transaction.touch(event[1].route.name for event in events if isinstance(event, tuple))
        if len(events) == 1:
            return self._guarded(lambda: self._apply_one(events[0], deletes=has_deletes(events)), check=True)
        tables = {event[1] for event in events if isinstance(event, tuple)}
        of_one_shape = len(tables) == len({table.route.name for table in tables})  # a set knows no other
        if of_one_shape and self._guarded(lambda: self._apply_coalesced(events), check=True) is None:
            return None
        return self._guarded(lambda: self._apply_ordered(events), check=True)

    def rollback(self) -> None:
        """Forget what has been applied since the last commit."""
        self._transaction.rollback()

    def begin(self) -> None:
        """Open a transaction, unless one is open."""
        self._transaction.begin()

    def _undo(self, *, to_savepoint: bool) -> None:
        if to_savepoint:
            self._transaction.execute("ROLLBACK TO SAVEPOINT batch")
        else:
            self._transaction.rollback()

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
        self._transaction.execute("SAVEPOINT batch")
        try:
            self._apply_coalesced(self._quarantine.divert(events))
        except self._curable as exc:
            self._undo(to_savepoint=True)
            self._quarantine.rewind()
            return self._learn(exc) and self._applied_again(events)
        self._transaction.execute("RELEASE SAVEPOINT batch")
        return True

    def _look_ahead(self) -> None:
        """While the server works on one batch, coalesce the next."""
        batch = self._upcoming()
        if batch is not None and batch.segments is None:
            batch.segments = self._coalesce(batch.events)

    def _coalesce(self, events: Sequence[Event]) -> list[Coalesced | Ordered]:
        return coalesce(events, key_changes=self._replica_role)

    def _apply_coalesced(self, events: Sequence[Event]) -> None:
        self._apply_segments(self._coalesce(events))

    def _apply_segments(self, segments: Sequence[Coalesced | Ordered]) -> None:
        for segment in segments:
            if isinstance(segment, dict):
                self._transaction.run(self._steps(segment))
            else:
                self._apply_ordered(segment)

    def _replay(self, batch: Batch, *, checked: bool = False) -> None:
        """In source order: in short runs, of which most are still good as sets; the others one change at a time."""
        self.begin()
        for start, end in runs(batch, None if checked else _REPLAY_EVENTS):
            run = batch.events[start:end]
            self._transaction.execute("SAVEPOINT batch")
            self._quarantine.mark()
            for apply in (self._apply_coalesced, self._apply_ordered):
                try:
                    apply(self._quarantine.divert(run, start))
                    if checked:
                        self._transaction.execute(_CHECK)
                except self._curable:
                    self._undo(to_savepoint=True)
                    self._quarantine.rewind()
                else:
                    break
            else:
                self._one_by_one(run, start, checked)  # names the change at fault
            self._transaction.execute("RELEASE SAVEPOINT batch")

    def _try_again(self) -> None:
        """What was refused in its place in the batch may go in behind it: a child that came before its parent, say."""
        groups = [Group([(each.at, each.event) for each in changes]) for changes in self._quarantine.chances()]
        if not groups:
            return
        settle(self.attempt, groups)
        self._quarantine.settle(*outcome(groups))

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
            remap(self._conn, self._routes, self._maps, self._open_source, self._quarantine, self._row_types)

    def _steps(self, nets: Coalesced) -> list[Step | Copy]:
        """Deletes, children first; then per table, parents first, updates and inserts."""
        for table, net in nets.items():
            if table.route.name in self._handing_on and table.covers_target:
                net.rewrite(tuple(range(table.width)), table.key_of)
        parents_first = sorted(nets.items(), key=lambda item: self._position[item[0].route.name])
        compose = self._composer
        steps: list[Step | Copy] = []
        for table, net in reversed(parents_first):
            steps += compose.deletes(table, net)
        for table, net in parents_first:
            steps += compose.updates(table, net)
            steps += compose.inserts(table, net.inserts)
        return steps

    def _one_by_one(self, events: Sequence[Event], start: int, checked: bool) -> None:
        """``start``: where in the batch these events begin."""
        deletes = has_deletes(events)
        for at, event in enumerate(events, start):
            if self._quarantine.takes_in(event, at):
                continue
            if not self._quarantine.takes or type(event) is not tuple:
                self._apply_one(event, deletes=deletes)
                continue
            refusal = self._guarded(lambda each=event: self._apply_one(each, deletes=deletes), check=checked)  # type: ignore[misc]
            if refusal is not None:
                self._quarantine.hold(event, at, refusal)

    def _guarded(self, action: Callable[[], None], *, check: bool) -> RowRejected | None:
        """Do it in a savepoint; undone, and the refusal, if the target refuses it."""
        self._transaction.execute("SAVEPOINT change; SET CONSTRAINTS ALL DEFERRED" if check else "SAVEPOINT change")
        try:
            action()
            self._transaction.execute(f"{_CHECK if check else ''} RELEASE SAVEPOINT change")
        except _REFUSED as exc:
            self._transaction.execute("ROLLBACK TO SAVEPOINT change; RELEASE SAVEPOINT change")
            if isinstance(exc, RowRejected):
                return exc
            return refused(exc, None) if isinstance(exc, Miscount) else refused_by_constraint(exc)
        return None

    def _apply_one(self, event: Event, *, deletes: bool) -> None:
        """One change.

        Raises:
            RowRejected: by names alone.
        """
        if isinstance(event, Unmap):
            self._unmap(event)
            return
        steps = self._composer.in_order(event, deletes=deletes)
        try:
            self._transaction.run(steps)
        except _CURABLE as exc:
            # In front of a TRUNCATE deferred constraints look at what came before it.
            before = isinstance(event, Truncation) and isinstance(exc, errors.IntegrityError)
            # Not chained: the driver's message quotes values in its detail.
            raise (refused_by_constraint(exc) if before else refused(exc, steps[0])) from None

    def _apply_ordered(self, events: Sequence[Event]) -> None:
        deletes = has_deletes(events)
        waiting: list[Step] = []
        for event in events:
            if isinstance(event, Unmap):
                self._transaction.run(waiting)
                waiting = []
                self._unmap(event)
                continue
            waiting += self._composer.in_order(event, deletes=deletes)
            if len(waiting) >= _PIPELINE_STATEMENTS:
                self._transaction.run(waiting)
                waiting = []
        self._transaction.run(waiting)

    def _unmap(self, event: Unmap) -> None:
        self.begin()
        unmap(self._conn, self._routes, event.map, event.source_id, event.target_id)
