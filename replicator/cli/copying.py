"""Phase one on its own: the sessions, the signals, and whether we copy or ask a running service to."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType

from replicator.config import Settings
from replicator.errors import Refused, StateError
from replicator.lanes import refuse_unknown_tables
from replicator.logs import get_logger
from replicator.model.schema import TableName, show_tables
from replicator.postgres.connection import Connection, connect, translated
from replicator.routes import refuse_faults, require_routes
from replicator.routing.route import Route
from replicator.survey import survey
from replicator.target import state
from snapshot.anew import find_break
from snapshot.clear import tables_with_rows
from snapshot.plan import choose
from snapshot.progress import Progress
from snapshot.run import recopy, run_snapshot

log = get_logger(__name__)

_POLL_S = 0.3
_SERVICE_GONE_S = 20.0  # a service that reconnects is without its lock for a while


@dataclass(frozen=True, slots=True)
class Selection:
    """What the options ask for. ``only`` None: all tables."""

    only: frozenset[TableName] | None
    exclude: frozenset[TableName]
    truncate: bool


def by_lane(settings: Settings, selection: Selection) -> list[tuple[Settings, Selection]]:
    """What is asked of each lane; lanes that have none of the tables named are left out."""
    if selection.only is None:
        return [(lane, replace(selection, exclude=frozenset(filter(lane.takes, selection.exclude))))
                for lane in settings.split()]  # fmt: skip
    found = [(lane, replace(selection, only=frozenset(filter(lane.takes, selection.only)),
                            exclude=frozenset(filter(lane.takes, selection.exclude))))
             for lane in settings.split()]  # fmt: skip
    return [(lane, asked) for lane, asked in found if asked.only]


@dataclass(frozen=True, slots=True)
class Preview:
    """What `copy` would do.

    ``occupied``: tables among ``to_copy`` that hold rows which we did not copy. ``broken``: why the stream cannot go
    on, so that nothing is done, or with ``--truncate`` all over again; ``emptied``: the tables that this concerns.
    """

    phase: str
    to_copy: tuple[TableName, ...]
    done: tuple[TableName, ...]
    occupied: tuple[TableName, ...]
    broken: str = ""
    emptied: tuple[TableName, ...] = ()


@dataclass(frozen=True, slots=True)
class Copied:
    """How it ended. ``complete``: every table of the plan is copied, and the stream can begin."""

    complete: bool
    by_service: bool = False


class Interrupted(Exception):  # no error: somebody asked for it
    """A signal ended the copying; it can be resumed."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def preview(settings: Settings, selection: Selection) -> Preview:
    """Look at what would be copied; changes nothing."""
    slot = settings.source.slot
    with (
        connect(settings.source.dsn, "source", purpose="plan") as source,
        connect(settings.target.dsn, "target", purpose="plan") as target,
    ):
        routes = _routes(settings, selection, source, target)
        chosen = choose(routes, selection.only, selection.exclude)
        with translated("target"):
            checkpoint = state.load_checkpoint(target, slot) if state.exists(target) else None
            states = state.load_table_states(target, slot) if checkpoint is not None else {}
            phase = checkpoint.phase if checkpoint is not None else "new"
            under_way = checkpoint is not None and phase in ("copying", "catching_up", "streaming", "cutting_over")
            broken = find_break(source, settings, routes, checkpoint, states) if checkpoint and under_way else None
            copied = {name for name, known in states.items() if known.state == "copied"} if broken is None else set()
            again = selection.only is not None and phase not in ("new", "copying")
            to_copy = [route.name for route in chosen if again or route.name not in copied]
            ours = [route.name for route in routes if route.name in states and states[route.name].attempt]
            others = [name for name in to_copy if name not in ours]
            return Preview(
                phase=phase,
                to_copy=tuple(to_copy),
                done=tuple(route.name for route in chosen if route.name not in to_copy),
                occupied=tuple(tables_with_rows(target, others)),
                broken=broken.message if broken is not None else "",
                emptied=tuple(ours) if broken is not None else (),
            )


def copy(
    settings: Settings,
    selection: Selection,
    progress: Callable[[Progress], None] | None,
    *,
    workers: int | None = None,
    dask: str | None = None,
) -> Copied:
    """Copy what is missing, or the tables named once more; a running service does the latter by itself.

    Args:
        workers: parallel copies, instead of what the settings say.
        dask: address of a Dask scheduler whose workers do the copying.

    Raises:
        Interrupted: SIGINT or SIGTERM.
        ReplicatorError: as `snapshot.run.run_snapshot`.
    """
    slot = settings.source.slot
    with connect(settings.target.dsn, "target", purpose="snapshot") as writer:
        state.migrate(writer)
        with translated("target"):
            if selection.only and state.writer_is_running(writer, slot):
                if dask is not None:
                    raise Refused("the service is running and copies by itself", hint="leave --dask out, or stop it")
                _ask_service(settings, selection, writer)
                return Copied(complete=True, by_service=True)
            state.lock_writer(writer, slot)
            checkpoint = state.load_checkpoint(writer, slot)
        with connect(settings.source.dsn, "source", purpose="snapshot") as source:
            routes = _routes(settings, selection, source, writer)
            work = _choose_work(selection, "new" if checkpoint is None else checkpoint.phase)
            # From here on signals end the work in an orderly way; before, nothing has begun.
            with _where(settings, workers, dask) as (settings, executor), _stopped_by_signals() as stop:
                sides = {"writer": writer, "source": source}
                return Copied(work(settings, routes, **sides, stop=stop, progress=progress, executor=executor))


@contextmanager
def _where(settings: Settings, workers: int | None, dask: str | None) -> Iterator[tuple[Settings, Executor | None]]:
    """The settings with as many workers as there are, and who they are if they are not ours."""
    if dask is None:
        yield _with_workers(settings, workers), None
        return
    from snapshot.remote import dask_cluster

    with dask_cluster(dask) as cluster:
        log.info("copying on a Dask cluster", workers=cluster.workers, threads=cluster.threads)
        yield _with_workers(settings, workers or cluster.threads), cluster.executor


def _with_workers(settings: Settings, workers: int | None) -> Settings:
    if workers is None:
        return settings
    return settings.model_copy(update={"snapshot": settings.snapshot.model_copy(update={"workers": workers})})


def _routes(settings: Settings, selection: Selection, source: Connection, target: Connection) -> Sequence[Route]:
    """The routes of the plan. Once the first snapshot is complete, of tables that are new those alone that are asked
    for. A table that has drifted apart is no obstacle: to copy it is the remedy.
    """
    slot = settings.source.slot
    with translated("target"):
        checkpoint = state.load_checkpoint(target, slot) if state.exists(target) else None
        if checkpoint is None or checkpoint.phase in ("new", "copying"):
            refuse_unknown_tables(settings, source, target)
            return require_routes(settings, source, target)
        states = state.load_table_states(target, slot)
    found = survey(settings, source, target, states, copy_anew=selection.only or ())
    refuse_faults(found.faults)
    return found.routes


def _choose_work(selection: Selection, phase: str) -> Callable[..., bool]:
    """Phase one, or tables copied once more beside a stream that does not run now."""
    if selection.only is None or phase in ("new", "copying"):
        return partial(run_snapshot, truncate=selection.truncate, only=selection.only, exclude=selection.exclude)
    if phase in ("cutting_over", "cut_over"):
        raise Refused(f"no table can be copied again at phase {phase}")
    return partial(recopy, names=sorted(selection.only), truncate=selection.truncate)


def _ask_service(settings: Settings, selection: Selection, conn: Connection) -> None:
    """Request the copy through the state, and wait until it is done."""
    slot, names = settings.source.slot, sorted(selection.only or ())
    if selection.truncate:
        raise Refused("the service is running: --truncate is for a copy that it does not do", hint="stop it first")
    with connect(settings.source.dsn, "source", purpose="plan") as source:
        choose(_routes(settings, selection, source, conn), selection.only, selection.exclude)
    checkpoint = state.load_checkpoint(conn, slot)
    if checkpoint is None or checkpoint.phase not in ("catching_up", "streaming"):
        phase = "new" if checkpoint is None else checkpoint.phase
        raise Refused(f"no table can be copied again at phase {phase}", hint="wait until the snapshot is complete")
    unknown = set(names) - state.load_table_states(conn, slot).keys()
    if unknown:
        raise Refused(
            f"the running service does not know {show_tables(sorted(unknown))}",
            hint="stop it, run this command again, then start it with the settings that name the table",
        )
    before = _request(conn, slot, names)
    seen = time.monotonic()
    while True:
        time.sleep(_POLL_S)
        states = state.load_table_states(conn, slot)
        if all(states[name].state == "copied" and states[name].attempt > before[name] for name in names):
            return
        if state.writer_is_running(conn, slot):
            seen = time.monotonic()
        elif time.monotonic() - seen > _SERVICE_GONE_S:
            raise StateError(
                "the service has ended before the copy was done",
                hint=f"start it again with `{settings.run_command}`: the request stays",
            )


def _request(conn: Connection, slot: str, names: Collection[TableName]) -> dict[TableName, int]:
    """Enter the request; the number of each table's last attempt."""
    with conn.transaction():
        state.add_table_states(conn, slot, names)
        states = state.load_table_states(conn, slot)
        conn.cursor().executemany(
            """
            UPDATE replicator.table_state SET state = 'copy_requested'
            WHERE slot = %s AND table_schema = %s AND table_name = %s
            """,
            [(slot, schema, name) for schema, name in names],
        )
    return {name: states[name].attempt for name in names}


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM sets the event, a second SIGINT interrupts at once; at the end `Interrupted`."""
    stop = threading.Event()
    caught: list[int] = []

    def handler(signum: int, _frame: FrameType | None) -> None:
        if caught and signum == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(signum)
        stop.set()

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
    if caught:
        raise Interrupted(caught[0])
