"""The stream as a whole: guards at the start, receiver and applier at work, the checkpoint, and when to end."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import time
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from enum import Enum

import psycopg
from psycopg import errors

from replicator import metrics
from replicator.config import Settings
from replicator.errors import ProtocolError, RowRejected, SchemaMismatch, StateError, TooEarly, UnmappedId
from replicator.failpoints import failpoint
from replicator.logs import get_logger
from replicator.model.change import Op
from replicator.model.lsn import ZERO, Lsn
from replicator.model.schema import TableName
from replicator.pgoutput import unix_seconds
from replicator.postgres.connection import Connection, connect, query, translated
from replicator.postgres.pipeline import Prepared
from replicator.postgres.session import Peer
from replicator.routes import load_referenced
from replicator.routing.idmap import IdMaps
from replicator.routing.route import Route
from replicator.stream.applier import Applier
from replicator.stream.assembler import Assembler
from replicator.stream.batch import Batch
from replicator.stream.guard import guard_start, open_stream
from replicator.stream.inbox import Inbox
from replicator.stream.lookout import Lookout
from replicator.stream.lookup import followers
from replicator.stream.mapnews import MapNews
from replicator.stream.quarantine import Quarantine
from replicator.stream.receiver import Receiver
from replicator.stream.refusals import NOT_SET_ASIDE, DeferredRefusal, explain
from replicator.stream.relations import Relations
from replicator.stream.retry import retry
from replicator.stream.tally import Tally
from replicator.stream.watchdog import Watchdog
from replicator.target.idmaps import load_maps, record_unmapped
from replicator.target.role import may_be_replica
from replicator.target.state import Checkpoint, load_checkpoint, load_table_states, set_phase

log = get_logger(__name__)

_TICK_S = 1.0  # between two looks at the state schema
_TAKE_S = 0.2  # how long a stop may go unnoticed while nothing comes in
_PATIENCE_S = 5.0  # how long the target's transaction stays open for one in progress that does not go on
_IDLE_S = 8.0  # heartbeats come every 5 s: after this without news the lag counts from the last commit again


class Outcome(Enum):
    """Why the stream ended, other than by an error."""

    STOPPED = "stopped"
    REACHED = "reached"  # the position that the caller asked for is committed
    FINALIZED = "finalized"  # a cutover has finalized
    COPY_REQUESTED = "copy requested"  # tables are to be copied again


class Stream:
    """One run of the stream, from the checkpoint on. ``writer`` holds the writer's lock and becomes the applier's."""

    def __init__(
        self,
        settings: Settings,
        routes: Sequence[Route],
        *,
        writer: Connection,
        stop: threading.Event,
        until: Lsn | None,
        settled: Collection[Hashable] = (),
        ahead: bool = False,
    ) -> None:
        """``until``: end once that is committed; ``stop``: end as soon as possible; ``settled``: see `Relations`;
        ``ahead``: apply large transactions while they are in progress.
        """
        self._settled = settled
        self._lookout = Lookout(settings, routes)
        self._settings, self._routes, self._writer, self._stop, self._until = settings, routes, writer, stop, until
        self._slot = settings.source.slot
        self._source: Connection | None = None
        self.peer: Peer | None = None  # the server's end of the replication session, once there is one
        self._checkpoint = self._load_checkpoint()
        self._committed = self._checkpoint.applied_lsn
        self._pending = ZERO  # a position without changes, stored with the next tick
        self._commit_time = self._checkpoint.commit_time
        self._news_at = time.monotonic()
        self._next_tick = 0.0
        self._tally = Tally()
        self._in_parts = False
        self._ahead = ahead
        self.is_ahead = False  # what is being applied may yet be rolled back on the source
        self.advanced = False  # whether this run committed anything: a retry that does is worth its while

    def run(self) -> Outcome:
        """Stream until there is a reason to end.

        Raises:
            TransientError: a connection was lost; run again from the checkpoint.
            TooEarly: run again, not ahead.
            SlotLost, SchemaMismatch, RowRejected, UnmappedId, …: stop.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_source)
            applier, receiver = self._prepare()
            stack.callback(receiver.stop)
            stack.callback(self._abandon, applier)
            watchdog = Watchdog(self._stop, self._writer)
            stack.callback(watchdog.finish)
            self._inbox.put(Batch(remap=True))
            receiver.start()
            log.info("streaming", slot=self._slot, lsn=str(self._committed))
            watchdog.start()
            outcome = self._apply_until_done(applier)
            self._write_last_counts(applier)
            return outcome

    def _write_last_counts(self, applier: Applier) -> None:
        """What the last second applied. Only a count: losing it to an outage is no reason to fail."""
        with contextlib.suppress(psycopg.Error):
            applier.rollback()
            if self._tally.has_rows:
                self._tally.store(self._writer, self._slot)

    def _prepare(self) -> tuple[Applier, Receiver]:
        with translated("target"):
            states = load_table_states(self._writer, self._slot)
        with self._lookout.explaining(self._open_source(), self._writer):
            guarded = guard_start(self._open_source(), self._settings, self._routes, self._checkpoint, states)
        with translated("target"):
            self._maps, self._relations, unmapped = self._load_maps()
            # Another session's batch may be half done when its server dies under it; ours begins clean.
            replica = may_be_replica(self._writer)
            if replica:
                self._writer.execute("SET session_replication_role = replica")
            self._quarantine = self._load_quarantine(live=not replica)
            limits = self._settings.stream
            self._inbox = Inbox(max_rows=limits.max_batch_rows, max_bytes=limits.max_batch_bytes)
            applier = Applier(
                self._writer,
                self._routes,
                maps=self._maps,
                open_source=self._open_source,
                replica_role=replica,
                quarantine=self._quarantine,
                upcoming=self._inbox.upcoming,
            )
        names = [spec.name for spec in self._settings.map_specs if not spec.is_lookup]
        self._map_news = MapNews(self._writer, names, self._maps, self._inbox, version=self._checkpoint.map_version)
        self._assembler = Assembler(
            self._relations,
            applied=self._committed,
            unmapped_before=unmapped,
            part_rows=limits.max_batch_rows,
            part_bytes=limits.max_batch_bytes,
            referenced=load_referenced(self._settings, self._routes, self._open_source(), self._writer),
        )
        replication = open_stream(self._settings, guarded, self._writer)
        self.peer = replication.peer
        return applier, Receiver(
            replication,
            slot=self._slot,
            publication=self._settings.source.publication,
            start=self._committed,
            assembler=self._assembler,
            inbox=self._inbox,
            committed=lambda: self._committed,
            before_transaction=self._map_news.take,
            ahead=self._ahead,
        )

    def _apply_until_done(self, applier: Applier) -> Outcome:
        while True:
            if self._stop.is_set():
                return Outcome.STOPPED
            try:
                batch = self._inbox.take(_TAKE_S)
            except UnmappedId as exc:
                with translated("target"):
                    record_unmapped(self._writer, exc.unmapped)
                raise
            try:
                if batch is not None:
                    self._handle(applier, batch)
                elif self.is_ahead and time.monotonic() - self._news_at > _PATIENCE_S:
                    raise TooEarly("the source does not go on with it")
                if not self._in_parts and time.monotonic() >= self._next_tick:
                    outcome = self._tick(applier)
                    if outcome is not None:
                        return outcome
            except errors.NotNullViolation as exc:
                if (exc.diag.schema_name, exc.diag.table_name) == ("replicator", "checkpoint"):
                    return Outcome.FINALIZED
                raise explain(exc) from exc
            except psycopg.Error as exc:
                if self._stop.is_set():
                    return Outcome.STOPPED
                raise explain(exc) from exc
            if self._until is not None and self._committed >= self._until:
                return Outcome.REACHED

    def _handle(self, applier: Applier, batch: Batch) -> None:
        if self._in_parts and not batch.final_part:
            raise ProtocolError("something else came between the parts of a transaction")
        self._news_at = time.monotonic()
        if batch.commit_time:
            self._commit_time = dt.datetime.fromtimestamp(unix_seconds(batch.commit_time), dt.UTC)
        if not (batch.events or batch.fence or batch.map_changes or batch.remap or batch.unmapped or self._in_parts):
            # Only the position moved: not worth a commit of its own, unless somebody waits for it.
            self._pending = max(self._pending, batch.end_lsn)
            if self._until is not None and self._pending >= self._until:
                self._next_tick = 0.0
            return
        started = time.monotonic()
        self._in_parts = not batch.complete
        self._tally.add(self._apply(applier, batch), batch.unmapped)
        if not batch.complete:
            return
        metrics.TRANSACTIONS.inc(batch.transactions)
        metrics.BATCH_ROWS.observe(len(batch.events))
        metrics.BATCH_DURATION_SECONDS.observe(time.monotonic() - started)
        self._count()

    def _apply(self, applier: Applier, batch: Batch) -> Counter[tuple[Op, TableName]]:
        """Apply a batch and, if it is complete, commit it; what went in."""
        self.is_ahead = batch.in_progress
        if self.is_ahead:
            return self._apply_ahead(applier, batch)
        lsn = max(batch.end_lsn, self._committed)
        try:
            counts = applier.commit_at_once(batch, self._checkpoint_at(lsn, batch.fence))
            if counts is not None:
                self._stored(lsn)
                return counts
            counts = applier.apply(batch)
            if batch.complete:
                self._store(applier, lsn, batch.fence)
        except DeferredRefusal as exc:
            if not self._quarantine.takes:
                raise
            if batch.final_part or not batch.complete:  # what came before is gone
                exc.hint = NOT_SET_ASIDE
                raise
            # A deferred constraint does not tell which change is at fault: once more, with a look at each transaction.
            applier.rollback()
            self._quarantine.load()
            counts = applier.apply(batch, checked=True)
            self._store(applier, lsn, batch.fence)
        return counts

    def _apply_ahead(self, applier: Applier, batch: Batch) -> Counter[tuple[Op, TableName]]:
        """A part of a transaction that may yet be rolled back: what is wrong with it is nobody's business before."""
        try:
            counts = applier.apply(batch)
        except (RowRejected, SchemaMismatch) as exc:
            raise TooEarly(exc.message) from exc
        if self._quarantine.holds:
            raise TooEarly("changes are in quarantine, or would have to be")
        return counts

    def _count(self) -> None:
        """What was committed just now, earlier parts of the same transaction included."""
        self._tally.committed()
        self._quarantine.report()

    def _store(self, applier: Applier, lsn: Lsn, fence: str | None = None) -> None:
        """Write the checkpoint into the open transaction and commit it."""
        applier.commit(self._checkpoint_at(lsn, fence))
        self._stored(lsn)

    def _checkpoint_at(self, lsn: Lsn, fence: str | None) -> Prepared:
        """After a cutover has finalized the target is its own: then the NULL fails, and with it the whole batch."""
        return (
            b"""
            UPDATE replicator.checkpoint
            SET applied_lsn = CASE WHEN phase <> 'cut_over' THEN %s::pg_lsn END, commit_time = %s,
                fence = coalesce(%s, fence), lag_seconds = %s, problem = NULL, updated_at = clock_timestamp()
            WHERE slot = %s
            """,
            (str(lsn), self._commit_time, fence, self._lag_seconds(), self._slot),
        )

    def _stored(self, lsn: Lsn) -> None:
        """The checkpoint is committed."""
        self.advanced = self.advanced or lsn > self._committed
        self._committed = lsn
        metrics.APPLIED_LSN_BYTES.set(lsn)
        metrics.LAG_SECONDS.set(self._lag_seconds())
        if self._commit_time is not None:
            metrics.LAST_COMMIT_TIMESTAMP_SECONDS.set(self._commit_time.timestamp())

    def _tick(self, applier: Applier) -> Outcome | None:
        """Once a second: store the position, look for what the commands ask of us."""
        if self._tally.has_rows:
            applier.begin()
            self._tally.store(self._writer, self._slot)
        self._store(applier, max(self._pending, self._committed))
        self._tally.stored()
        if self._lookout.is_due(altered=self._relations.altered):
            self._relations.altered = False
            self._lookout.look(self._open_source(), self._writer)
        rows = query(
            self._writer,
            """
            SELECT c.phase, c.map_version, EXISTS (
                SELECT FROM replicator.table_state t WHERE t.slot = c.slot AND t.state = 'copy_requested'),
                (SELECT count(*) FROM replicator.quarantine q WHERE q.slot = c.slot),
                EXISTS (SELECT FROM replicator.quarantine q WHERE q.slot = c.slot AND q.retry_requested)
            FROM replicator.checkpoint c WHERE c.slot = %s
            """,
            self._slot,
        )
        if not rows:
            raise StateError("the checkpoint is gone: somebody has removed it while the stream was running")
        [(phase, map_version, copy_requested, quarantined, retry_requested)] = rows
        if phase == "catching_up" and self._pending and self._inbox.is_empty:
            set_phase(self._writer, self._slot, "streaming", only_from="catching_up")
            log.info("caught up", lsn=str(self._committed))
        self._map_news.look(map_version)
        if retry_requested:
            self._retry(applier)
        elif quarantined != self._quarantine.count:  # `quarantine drop` was here
            self._quarantine.load()
        self._next_tick = time.monotonic() + _TICK_S
        if phase == "cut_over":
            return Outcome.FINALIZED
        return Outcome.COPY_REQUESTED if copy_requested else None

    def _retry(self, applier: Applier) -> None:
        """`quarantine retry` was here."""
        applier.begin()
        self._tally.add(retry(self._writer, self._slot, self._routes, self._maps, applier.attempt))
        self._store(applier, self._committed)
        self._count()
        self._quarantine.load()

    def _load_quarantine(self, *, live: bool) -> Quarantine:
        stream = self._settings.stream
        takes = stream.on_rejected_row == "quarantine"
        quarantine = Quarantine(
            self._writer, self._slot, self._routes, takes=takes, limit=stream.max_quarantined, live=live
        )
        quarantine.load()
        return quarantine

    def _lag_seconds(self) -> float:
        """Now minus the source commit time of what was applied last; 0 while nothing is pending."""
        if self._commit_time is None:
            return 0.0
        idle = self._inbox.is_empty and not self._in_parts and time.monotonic() - self._news_at < _IDLE_S
        return 0.0 if idle else max(0.0, time.time() - self._commit_time.timestamp())

    def _load_checkpoint(self) -> Checkpoint:
        with translated("target"):
            failpoint("before_checkpoint_read", self._writer)
            checkpoint = load_checkpoint(self._writer, self._slot)
            failpoint("after_checkpoint_read", self._writer)
        if checkpoint is None:
            raise StateError(f"slot {self._slot} has no checkpoint on the target", hint="take a snapshot first")
        return checkpoint

    def _load_maps(self) -> tuple[IdMaps, Relations, set[tuple[str, str]]]:
        specs = {spec.name: spec for spec in self._settings.map_specs}
        maps = load_maps(self._writer, specs)
        states = load_table_states(self._writer, self._slot)
        relations = Relations(
            self._routes,
            maps,
            followers(specs.values(), self._routes, maps),
            snapshot_lsns={name: state.snapshot_lsn or ZERO for name, state in states.items()},
            records={name: state.record for name, state in states.items() if state.record is not None},
            ignore_new_columns=self._settings.stream.on_new_column == "ignore",
            settled=self._settled,
        )
        unmapped = {(name, source_id) for name, source_id in query(
            self._writer, "SELECT DISTINCT map, source_id FROM replicator.unmapped_id")}  # fmt: skip
        return maps, relations, unmapped

    def _open_source(self) -> Connection:
        """A plain session on the source, opened when first needed."""
        if self._source is None:
            self._source = connect(self._settings.source.dsn, "source", purpose="lookup")
        return self._source

    def _close_source(self) -> None:
        if self._source is not None:
            self._source.close()

    def _abandon(self, applier: Applier) -> None:
        try:
            applier.rollback()
        except psycopg.Error:
            log.debug("rollback failed: the connection is gone, and the transaction with it")
