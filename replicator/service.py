"""The service: snapshot if there is none, then stream; retry what a retry can cure, stop when told to, hand over."""

from __future__ import annotations

import gc
import random
import signal
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from replicator import metrics
from replicator.config import Settings
from replicator.errors import ReplicatorError, SchemaMismatch, StateError, TooEarly, TransientError
from replicator.failpoints import failpoint
from replicator.lanes import refuse_unknown_tables
from replicator.logs import get_logger
from replicator.model.lsn import Lsn
from replicator.model.schema import show_table
from replicator.monitor import Monitor
from replicator.postgres.connection import Connection, connect, hang_up, translated
from replicator.postgres.session import Peer, Session, end
from replicator.routes import refuse_faults, require_routes
from replicator.routing.route import Route
from replicator.source.messages import emit_heartbeat
from replicator.stream.run import Outcome, Stream
from replicator.survey import accept, newcomer_message, require_survey, survey
from replicator.target import indexes
from replicator.target.state import (
    Checkpoint,
    load_checkpoint,
    load_table_states,
    lock_writer,
    migrate,
    set_problem,
)
from replicator.web import WebServer
from snapshot.anew import find_break
from snapshot.run import recopy, run_snapshot

log = get_logger(__name__)

_FIRST_ATTEMPTS = 6  # a server that was never reached is more likely a wrong address than a restart
# Snapshot and stream end sooner by themselves. This is for what waits on a server before, between and after them.
_STOP_GRACE_S = 8.0
_HANG_UP_EVERY_S = 0.25
_TELL_FROM = 2  # failures in a row: the first is as a rule a connection that was lost
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


def run(
    settings: Settings,
    *,
    truncate: bool = False,
    until_lsn: Lsn | None = None,
    until_caught_up: bool = False,
) -> None:
    """Run until SIGTERM or SIGINT, until a cutover has finalized, or until the position asked for is committed.

    Args:
        truncate: empty target tables before the first snapshot; start over if the slot is gone or lost at the start.
        until_lsn: end once this source position is committed on the target.
        until_caught_up: the same, for the source's position at the time the stream starts.

    Raises:
        ReplicatorError: what retrying did not cure.
    """
    service = Service(settings, truncate=truncate, until=until_lsn, until_caught_up=until_caught_up)
    with _stopped_by_signals(service.stop):
        service.run()


class Service:
    """The loop around both phases. `stop` may be set from any thread."""

    def __init__(self, settings: Settings, *, truncate: bool, until: Lsn | None, until_caught_up: bool) -> None:
        self.stop = threading.Event()
        self._settings = settings
        self._truncate = truncate
        self._until = until
        self._until_caught_up = until_caught_up
        self._reached = False  # whether both servers were ever there
        # A connection may be lost to us only: then the server still has its end, with locks and the slot.
        self._last_writer: Peer | None = None
        self._last_stream: Peer | None = None
        self._told = False  # whether `status` shows a problem that may be over
        self._settled: set[Hashable] = set()  # doubts about relations that the catalogs have settled
        self._ahead = True  # until that has gone wrong once
        self._fresh_look = False  # whether the catalogs were just read again because of a mismatch

    def run(self) -> None:
        """Returns when the service has done what it was asked for."""
        _spare_the_garbage_collector()
        monitor = Monitor(self._settings)
        web = WebServer(self._settings.metrics.listen, status=monitor.status, problems=monitor.problems)
        web.start()
        monitor.start()
        try:
            with _ends_in_time(self.stop):
                self._run_until_done()
        except Exception as exc:
            metrics.count_error(exc)
            self._tell_problem(exc)
            raise
        finally:
            monitor.stop()
            web.stop()

    def _run_until_done(self) -> None:
        failures = 0
        while not self.stop.is_set():
            try:
                outcome, advanced = self._attempt()
            except TransientError as exc:
                if self.stop.is_set():
                    return
                failures = 0 if exc.advanced else failures + 1
                if not self._reached and failures >= _FIRST_ATTEMPTS:
                    raise
                metrics.count_error(exc)
                side = "source" if exc.message.startswith("source") else "target"
                metrics.RECONNECTS.labels(side=side).inc()
                pause_s = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)] * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
                log.warning("connection lost, trying again", reason=exc.message, pause_s=round(pause_s, 1))
                if failures >= _TELL_FROM:
                    self._apply_no_longer_ahead(exc)  # should a transaction in progress be what the server fails over
                    self._tell_problem(exc)
                    self._told = True
                self.stop.wait(pause_s)
                continue
            failures = 0 if advanced else failures
            if outcome is not None and outcome is not Outcome.COPY_REQUESTED:
                log.info("stopping", reason=outcome.value)
                return

    def _attempt(self) -> tuple[Outcome | None, bool]:
        """One life of the connections: from the writer's lock to an outcome or an error."""
        writer = connect(self._settings.target.dsn, "target", purpose="apply")
        try:
            migrate(writer)
            # Around all of it: what the source says is translated where it is asked, the rest is the target's.
            with translated("target"):
                if not self._lock(writer):
                    return Outcome.STOPPED, False
                if self._told:
                    set_problem(writer, self._settings.source.slot, None)
                    self._told = False
                failpoint("after_lock", writer)
                return self._copy_and_stream(writer)
        finally:
            writer.close()

    def _lock(self, writer: Session) -> bool:
        """Take the writer's lock; False: stopped before.

        The server may need a moment to notice that whoever held it is dead: our own last session, which we end, or
        one of a service that was killed.
        """
        if self._last_writer is not None:
            end(writer, self._last_writer)
        for pause_s in (0.1, 0.2, 0.4, 0.8, 1.6, 3.0):
            try:
                lock_writer(writer, self._settings.source.slot)
            except StateError:
                if self.stop.wait(pause_s):
                    return False
            else:
                break
        else:
            lock_writer(writer, self._settings.source.slot)
        self._last_writer = writer.peer
        return True

    def _copy_and_stream(self, writer: Session) -> tuple[Outcome | None, bool]:
        slot = self._settings.source.slot
        with connect(self._settings.source.dsn, "source", purpose="catalog") as source:
            if self._last_stream is not None:
                with translated("source"):
                    end(source, self._last_stream)
            checkpoint = load_checkpoint(writer, slot)
            if checkpoint is not None and checkpoint.phase == "cut_over":
                return Outcome.FINALIZED, False
            if self.stop.is_set():
                return Outcome.STOPPED, False
            is_begun = checkpoint is not None and checkpoint.phase not in ("new", "copying")
            if checkpoint is not None and is_begun and self._truncate:
                is_begun = not self._is_broken(source, writer, checkpoint)
            self._copy(source, writer, is_begun=is_begun)
            if self.stop.is_set():
                return Outcome.STOPPED, False
            # What a table was copied again without, if that was interrupted: the stream looks rows up by its key.
            indexes.rebuild_missing(writer, slot=slot)
            # It was said of what is there at the start: a slot that is lost from here on is for a person to look at.
            self._truncate = False
            # Only now: a snapshot takes hours, and whoever waited to alter a table does so once it is copied.
            routes = self._accept_routes(source, writer)
            # Behind all that is committed: of an idle source, too, the stream knows at once that it has caught up.
            with translated("source"):
                lsn = emit_heartbeat(source)
            if self._until_caught_up and self._until is None:
                self._until = lsn
        stream = Stream(
            self._settings,
            routes,
            writer=writer,
            stop=self.stop,
            until=self._until,
            settled=self._settled,
            ahead=self._ahead,
        )
        try:
            outcome = stream.run()
        except TooEarly as exc:
            self._apply_no_longer_ahead(exc)
            return None, stream.advanced
        except TransientError as exc:
            exc.advanced = stream.advanced
            raise
        except SchemaMismatch as exc:
            # The catalogs may have moved on since the start; with routes planned anew it may fit.
            self._look_again(exc, advanced=stream.advanced)
            return None, stream.advanced
        finally:
            self._last_stream = stream.peer or self._last_stream
        self._fresh_look = False
        return outcome, stream.advanced

    def _is_broken(self, source: Connection, writer: Connection, checkpoint: Checkpoint) -> bool:
        """Whether only starting over helps."""
        states = load_table_states(writer, self._settings.source.slot)
        routes = survey(self._settings, source, writer, states).routes
        try:
            return find_break(source, self._settings, routes, checkpoint, states) is not None
        except StateError:
            return False  # something else is in the way, which the stream's own guard explains

    def _copy(self, source: Connection, writer: Connection, *, is_begun: bool) -> None:
        """The snapshot, if it is not done; tables that are to be copied again."""
        settings = self._settings
        states = load_table_states(writer, settings.source.slot) if is_begun else {}
        requested = [name for name, known in states.items() if known.state in ("copy_requested", "copying")]
        if not requested and is_begun:
            self._reached = True
            return
        if is_begun:
            found = survey(settings, source, writer, states, copy_anew=requested)
            refuse_faults(found.faults)
            routes: Sequence[Route] = found.routes
        else:
            refuse_unknown_tables(settings, source, writer)
            routes = require_routes(settings, source, writer)
        self._reached = True
        metrics.init_tables(str(route) for route in routes)
        if not is_begun:
            run_snapshot(settings, routes, writer=writer, source=source, stop=self.stop, truncate=self._truncate)
        else:
            recopy(settings, routes, requested, writer=writer, source=source, stop=self.stop)

    def _accept_routes(self, source: Connection, writer: Connection) -> Sequence[Route]:
        """The routes for the stream, held against what is recorded, and recorded in their turn.

        Raises:
            SchemaMismatch: a table, source or target, is not what it was, and rows would go wrong.
        """
        states = load_table_states(writer, self._settings.source.slot)
        found = require_survey(self._settings, source, writer, states, closely=True)
        for drift in found.notes:
            log.warning("source and target have drifted apart", table=show_table(drift.table), what=drift.message,
                        remedy=drift.remedy)  # fmt: skip
        for name in found.newcomers:
            message, remedy = newcomer_message(name)
            log.warning(message, remedy=remedy)
        with translated("target"):
            accept(self._settings, writer, found)
        metrics.init_tables(str(route) for route in found.routes)
        metrics.init_maps(spec.name for spec in self._settings.map_specs)
        return found.routes

    def _look_again(self, exc: SchemaMismatch, *, advanced: bool) -> None:
        """Whether routes planned anew may settle it; raises it again where that was tried before."""
        if exc.doubt is not None and exc.doubt not in self._settled:
            self._settled.add(exc.doubt)
        elif self._fresh_look and not advanced:
            raise exc
        self._fresh_look = True
        log.warning("a relation differs from its route; planning the routes anew", reason=exc.message)

    def _apply_no_longer_ahead(self, exc: TransientError) -> None:
        if self._ahead:
            self._ahead = False
            log.info("large transactions are applied once they have committed, from here on", reason=exc.message)

    def _tell_problem(self, exc: Exception) -> None:
        """Leave the reason for `status`, if the target can still be reached."""
        if isinstance(exc, StateError):
            return  # another replicator's row is not ours to write into
        try:
            with connect(self._settings.target.dsn, "target", purpose="report") as conn:
                # Of an error that is not ours only the class: its text may hold anything.
                problem = exc.message if isinstance(exc, ReplicatorError) else f"unexpected {type(exc).__name__}"
                set_problem(conn, self._settings.source.slot, problem)
        except Exception as failure:
            log.debug("could not record the problem", reason=type(failure).__name__)


def _spare_the_garbage_collector() -> None:
    """Rows are held by the ten thousand and hold no cycles: looking for some took half of the stream's CPU time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@contextmanager
def _ends_in_time(stop: threading.Event) -> Iterator[None]:
    """Once ``stop`` is set the block ends soon: connections that then still keep it waiting are cut."""
    ended = threading.Event()

    def watch() -> None:
        while not stop.wait(_HANG_UP_EVERY_S):
            if ended.is_set():
                return
        if ended.wait(_STOP_GRACE_S):
            return
        log.warning("hanging up: a server does not answer in time for the stop")
        while not ended.wait(_HANG_UP_EVERY_S):
            hang_up()

    threading.Thread(target=watch, name="stop", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set ``stop``; a second SIGINT interrupts at once."""

    def handler(signum: int, _frame: FrameType | None) -> None:
        if stop.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        log.info("stopping on signal", signal=signal.Signals(signum).name)
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {
        number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
