"""Phase one from end to end: begin, resume, copy again.

The state on the target decides what to do, so that a crash at any instant is mended by simply starting again:

- no checkpoint: nothing was done; a slot of our name is somebody else's.
- phase ``new``: the slot may or may not be there; it is ours, and starts over, as do tables that hold rows of ours.
- phase ``copying``: tables that are not ``copied`` are emptied and copied under a newer snapshot, each with its LSN.
- any later one: nothing to do. Where the stream cannot go on from there, ``truncate`` takes us back to ``new``.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import psycopg

from replicator import metrics
from replicator.config import Settings
from replicator.errors import Refused, ReplicatorError, StateError, TransientError
from replicator.failpoints import failpoint
from replicator.logs import get_logger
from replicator.model.schema import Table, TableName
from replicator.postgres.catalog import server_identity
from replicator.postgres.connection import Connection, connect, query, translated
from replicator.routes import load_elsewhere, refuse_crossing_keys
from replicator.routing.idmap import MapSpec
from replicator.routing.record import unread_lookups
from replicator.routing.route import Route
from replicator.source.history import load_position
from replicator.source.publication import ensure_publication, require_publication
from replicator.source.slot import drop_slot, end_creation, load_slot, refuse_other_kind, slot_exists
from replicator.target import idmaps, indexes, quarantine, state
from replicator.target.anew import start_over
from replicator.target.role import may_be_replica
from snapshot.anew import SlotWatch, find_break, require_position
from snapshot.clear import empty, refuse_outsiders, refuse_rows, truncate
from snapshot.export import ExportedSnapshot, cancelled_by, export_snapshot
from snapshot.maps import read_lookup
from snapshot.plan import choose, plan_copies
from snapshot.pool import Pool
from snapshot.progress import Progress, Tracker
from snapshot.schedule import Schedule

_log = get_logger(__name__)

_States = dict[TableName, state.TableState]


def run_snapshot(
    settings: Settings,
    routes: Collection[Route],
    *,
    writer: Connection,
    source: Connection,
    stop: threading.Event,
    truncate: bool = False,
    only: Collection[TableName] | None = None,
    exclude: Collection[TableName] = (),
    progress: Callable[[Progress], None] | None = None,
    executor: Executor | None = None,
) -> bool:
    """Begin the snapshot, or resume it; when every table is copied, the phase becomes ``catching_up``.

    Args:
        writer: session on the target in autocommit mode that holds the writer's lock; the state is migrated.
        source: session on the source in autocommit mode.
        stop: ends the work within seconds, to be resumed later.
        truncate: empty target tables that hold rows of somebody else's, instead of refusing them; and start over where
            the slot or the publication is gone, lost or not the one that the checkpoint belongs to.
        only: target tables to copy now; the others stay pending, and with them the phase.
        exclude: target tables to leave pending.
        executor: where to copy; default: threads for little data, else `Settings.snapshot.workers` processes.

    Returns:
        Whether the snapshot is complete. False: ``stop`` was set, or tables were left pending.

    Raises:
        Refused: target tables hold rows.
        StateError: slot or publication are somebody else's, or the state belongs to another source.
        SlotLost: the stream cannot go on from the checkpoint, or could not after an interrupted snapshot.
        TransientError: a connection or a process was lost: call again to resume.
        RowRejected, UnmappedId: as they say.
    """
    job = _Job(settings, routes, writer, source, stop, truncate, progress, executor)
    chosen = choose(routes, only, exclude)
    return job.guarded(lambda: job.run(chosen))


def recopy(
    settings: Settings,
    routes: Collection[Route],
    names: Collection[TableName],
    *,
    writer: Connection,
    source: Connection,
    stop: threading.Event,
    truncate: bool = False,
    progress: Callable[[Progress], None] | None = None,
    executor: Executor | None = None,
) -> bool:
    """Copy tables again, or for the first time, beside a stream that pauses meanwhile. The phase stays as it is.

    Afterwards the stream must take up each table from its new ``snapshot_lsn``. If this is interrupted, the tables stay
    in state ``copying``, half filled or empty: call again before anything is applied to them.

    Args and errors: as of `run_snapshot`; ``truncate`` concerns tables that we never copied.

    Returns:
        Whether all of ``names`` are copied; False: ``stop`` was set.
    """
    job = _Job(settings, routes, writer, source, stop, truncate, progress, executor)
    chosen = choose(routes, names, ())
    return job.guarded(lambda: job.recopy(chosen))


@dataclass(frozen=True)
class _Job:
    settings: Settings
    routes: Collection[Route]
    writer: Connection
    source: Connection
    stop: threading.Event
    truncate: bool
    progress: Callable[[Progress], None] | None
    executor: Executor | None

    def guarded(self, work: Callable[[], bool]) -> bool:
        try:
            with cancelled_by(self.stop, self.writer, self.source), translated("target"):
                return work()
        except TransientError:
            if self.stop.is_set():
                return False
            raise

    @property
    def slot(self) -> str:
        return self.settings.source.slot

    @property
    def publication(self) -> str:
        return self.settings.source.publication

    # ── begin ──────────────────────────────────────────────────────────────────────────────────────────

    def run(self, chosen: list[Route]) -> bool:
        checkpoint = state.load_checkpoint(self.writer, self.slot)
        with translated("source"):
            identity = server_identity(self.source)
        if checkpoint is not None and (checkpoint.system_identifier, checkpoint.database) != identity:
            raise StateError(
                f"the state on the target belongs to another source than the one of slot {self.slot} here",
                hint="correct the source's DSN; or choose another slot; or `replicator teardown` to start over",
            )
        phase = "new" if checkpoint is None else checkpoint.phase
        if checkpoint is not None and phase in ("copying", "catching_up", "streaming", "cutting_over"):
            phase = self._phase_to_go_on_from(checkpoint, all_tables=len(chosen) == len(self.routes))
        if phase == "new":
            self._begin(chosen, identity, is_new=checkpoint is None)
        elif phase == "copying":
            self._resume(chosen)
        else:
            return True
        return self._complete()

    def _phase_to_go_on_from(self, checkpoint: state.Checkpoint, *, all_tables: bool) -> str:
        """The checkpoint's phase; ``new`` if the stream cannot go on from there and we may start over."""
        states = state.load_table_states(self.writer, self.slot)
        broken = find_break(self.source, self.settings, self.routes, checkpoint, states)
        if broken is None:
            self._note_timeline(load_position(self.source)[0])
            return checkpoint.phase
        if not (self.truncate and all_tables):
            raise broken
        if checkpoint.phase == "cutting_over":
            raise Refused(
                f"{broken.message}; and a cutover is unfinished, which may hold the source closed",
                hint="undo it with `replicator cutover abort`, then start over with `replicator run --truncate`",
            )
        _log.warning("starting over: the tables are emptied and copied again", reason=broken.message)
        self._end_orphans(self.writer)
        with self.writer.transaction():
            start_over(self.writer, self.slot, [route.name for route in self.routes])
        return "new"

    def _begin(self, chosen: list[Route], identity: tuple[str, str], *, is_new: bool) -> None:
        with translated("source"):
            found = load_slot(self.source, self.slot)
        if is_new and found is not None:
            raise slot_exists(self.slot)
        if found is not None:
            refuse_other_kind(found, identity[1])
        if not may_be_replica(self.writer):
            refuse_crossing_keys(self.settings, self.routes, self.source)
        attempts = {name: each.attempt for name, each in state.load_table_states(self.writer, self.slot).items()}
        fresh = [route for route in chosen if not attempts.get(route.name)]
        ours = [route.target for route in self.routes if attempts.get(route.name)]
        self._refuse_foreign_rows(fresh)
        # Before the slot: decoding looks the publication up in the catalog as it was.
        ensure_publication(self.source, self.publication, self.routes)
        self._truncate(fresh)
        if is_new:
            state.announce_checkpoint(self.writer, self.slot, *identity)
        else:
            # We hold the writer's lock, so nobody else is creating it.
            end_creation(self.source, self.slot)
            drop_slot(self.source, self.slot)
        try:
            failpoint("before_slot", self.writer)
            with self._export(self.slot, temporary=False) as snapshot:
                failpoint("after_slot", self.writer)
                with self.writer.transaction():
                    state.create_checkpoint(self.writer, self.slot, snapshot.lsn, *identity)
                    self._note_timeline(load_position(snapshot.holder)[0])
                    state.add_table_states(self.writer, self.slot, [route.name for route in self.routes])
                    if ours:
                        empty(self.writer, ours, replica=may_be_replica(self.writer))
                    self._store_lookups(snapshot, self._lookups())
                _log.info("snapshot begins", lsn=str(snapshot.lsn), tables=len(chosen))
                self._copy(chosen, snapshot)
        except StateError:
            # Somebody took the slot's name after we had looked.
            state.withdraw_checkpoint(self.writer, self.slot)
            raise

    def _resume(self, chosen: list[Route]) -> None:
        state.add_table_states(self.writer, self.slot, [route.name for route in self.routes])
        states = state.load_table_states(self.writer, self.slot)
        missing = {route.source.name for route in self.routes if states[route.name].state != "copied"}
        self._require_publication(missing, states)
        ensure_publication(self.source, self.publication, self.routes)
        todo = [route for route in chosen if states[route.name].state != "copied"]
        self._finish_copied([route.target for route in chosen if route not in todo])
        if todo:
            # The lookup maps stay as of the slot's consistent point: from there on the stream keeps them current.
            # But one that came into the settings meanwhile was never read.
            known = idmaps.names(self.writer)
            late = [spec for spec in self._lookups() if spec.name not in known]
            self._copy_anew(todo, states, late)

    def _complete(self) -> bool:
        if not state.are_copied(self.writer, self.slot, [route.name for route in self.routes]):
            return False
        # Those of tables that are no longer in the settings, if any; another lane builds its own.
        indexes.rebuild_missing(self.writer, slot=self.slot)
        failpoint("before_snapshot_complete", self.writer)
        state.set_phase(self.writer, self.slot, "catching_up")
        failpoint("after_snapshot_complete", self.writer)
        _log.info("snapshot complete", tables=len(self.routes))
        return True

    def recopy(self, chosen: list[Route]) -> bool:
        self._require_slot()
        state.add_table_states(self.writer, self.slot, [route.name for route in chosen])
        states = state.load_table_states(self.writer, self.slot)
        self._require_publication({route.source.name for route in chosen}, states)
        ensure_publication(self.source, self.publication, self.routes)
        records = [(route, states[route.name].record) for route in chosen]
        self._copy_anew(chosen, states, unread_lookups(records, self._lookups()))
        return True

    def _require_slot(self) -> None:
        checkpoint = state.load_checkpoint(self.writer, self.slot)
        assert checkpoint is not None  # there is a phase beyond `new`
        states = state.load_table_states(self.writer, self.slot)
        self._note_timeline(require_position(self.source, self.settings, checkpoint, states))

    def _note_timeline(self, timeline: int) -> None:
        """What is copied from here on is of this timeline."""
        state.set_timeline(self.writer, self.slot, timeline)

    def _require_publication(self, may_lack: Collection[TableName], states: _States) -> None:
        published = {name: each.published for name, each in states.items()}
        require_publication(self.source, self.publication, self.routes, may_lack=may_lack, published=published)

    # ── copy ───────────────────────────────────────────────────────────────────────────────────────────

    def _copy_anew(self, todo: list[Route], states: _States, lookups: Iterable[MapSpec]) -> None:
        """Copy tables under a newer snapshot than the slot's; those that were begun are emptied first."""
        fresh = [route for route in todo if states[route.name].attempt == 0]
        self._refuse_foreign_rows(fresh)
        self._truncate(fresh)
        begun = [route.name for route in todo if route not in fresh]
        name = f"{self.slot[:48]}_{secrets.token_hex(4)}"
        with self._export(name, temporary=True) as snapshot:
            self._end_orphans(self.writer)
            with self.writer.transaction():
                state.reopen_tables(self.writer, self.slot, begun)
                if begun:
                    empty(self.writer, [route.target for route in todo], replica=may_be_replica(self.writer))
                names = [route.name for route in todo]
                moot = quarantine.remove_tables(self.writer, self.slot, names, before=snapshot.lsn)
                self._store_lookups(snapshot, lookups)
            _log.info("tables are copied from a newer snapshot", lsn=str(snapshot.lsn), tables=len(todo))
            if moot:
                _log.info("copied anew: changes in quarantine are moot", changes=moot)
            self._copy(todo, snapshot)

    def _refuse_foreign_rows(self, routes: Iterable[Route]) -> None:
        tables = [route.target for route in routes]
        if self.truncate:
            refuse_outsiders(self.writer, tables, but=load_elsewhere(self.settings, self.source))
        else:
            refuse_rows(self.writer, tables)

    def _truncate(self, routes: Iterable[Route]) -> None:
        if self.truncate:
            but = load_elsewhere(self.settings, self.source)
            truncate(self.writer, [route.target for route in routes], but=but)

    def _copy(self, todo: list[Route], snapshot: ExportedSnapshot) -> None:
        options = self.settings.snapshot
        # As of the snapshot, like all that this session sees.
        published = require_publication(snapshot.holder, self.publication, self.routes)
        replica = may_be_replica(self.writer)
        copies = plan_copies(
            todo,
            _load_pages(snapshot.holder, todo),
            split_above=options.split_above,
            workers=options.workers,
            replica=replica,
        )
        tracker = Tracker(copies, self.progress)
        total_bytes = sum(copy.bytes_estimate for copy in copies.values())
        with Pool(options.workers, total_bytes, self.executor) as pool, self._no_orphans():
            schedule = Schedule(self.settings, self.writer, pool, tracker, self.stop, replica=replica)
            schedule.copy(copies, snapshot, published.tables, SlotWatch(self.source, self.slot))

    def _finish_copied(self, tables: list[Table]) -> None:
        """What an interrupted run left to do for tables whose rows are in."""
        for table in tables:
            metrics.set_table_state(str(table), "copied")
        bare = [table for table in tables if indexes.pending(self.writer, [table.name])]
        bare += [table for table in indexes.never_analyzed(self.writer, tables) if table not in bare]
        if bare:
            with Pool(self.settings.snapshot.workers, 0, self.executor) as pool:
                Schedule(self.settings, self.writer, pool, Tracker({}, None), self.stop, replica=False).finish(bare)

    def _export(self, slot: str, *, temporary: bool) -> AbstractContextManager[ExportedSnapshot]:
        tables = [route.source for route in self.routes]
        source = self.settings.source
        return export_snapshot(source.dsn, slot, tables, temporary=temporary, failover=source.failover, stop=self.stop)

    def _lookups(self) -> list[MapSpec]:
        return list({spec.name: spec for route in self.routes for spec in route.maps if spec.is_lookup}.values())

    def _store_lookups(self, snapshot: ExportedSnapshot, specs: Iterable[MapSpec]) -> None:
        for spec in specs:
            idmaps.replace_entries(self.writer, spec.name, read_lookup(snapshot.holder, spec))

    @contextmanager
    def _no_orphans(self) -> Iterator[None]:
        """Workers of an executor that was lent to us are out of the pool's reach; their sessions are not."""
        try:
            yield
        except BaseException:
            if self.executor is not None:
                # Not the writer: its statements are cancelled once we are to stop.
                with (
                    contextlib.suppress(ReplicatorError, psycopg.Error),
                    connect(self.settings.target.dsn, "target", purpose="snapshot") as conn,
                ):
                    self._end_orphans(conn)
            raise

    def _end_orphans(self, conn: Connection) -> None:
        """End sessions that work for this slot. We hold the writer's lock, so those of another run are orphans."""
        names = [f"replicator {purpose} {self.slot}"[:63] for purpose in ("copy", "index", "analyze")]
        conn.execute(
            """
            SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
            WHERE application_name = ANY (%s) AND usename = current_user
              AND datname = pg_catalog.current_database()
            """,
            (names,),
        )


def _load_pages(conn: Connection, routes: Iterable[Route]) -> dict[int, int]:
    """Heap pages of the source tables by OID."""
    with translated("source"):
        rows = query(
            conn,
            """
            SELECT t::bigint,
                   (pg_catalog.pg_relation_size(t) / pg_catalog.current_setting('block_size')::bigint)::bigint
            FROM unnest(%s::oid[]) AS t
            """,
            [route.source.oid for route in routes if route.source.kind == "r"],
        )
    return dict(rows)
