"""One stream between two databases: made without a snapshot, run in a thread, watched through the state schema."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from replicator import metrics
from replicator.config import Settings
from replicator.errors import TooEarly
from replicator.model.lsn import Lsn
from replicator.postgres.catalog import server_identity
from replicator.postgres.connection import Connection, connect, query
from replicator.postgres.session import end
from replicator.routes import require_routes
from replicator.routing.record import record_of
from replicator.source.messages import emit_fence
from replicator.source.publication import ensure_publication
from replicator.stream.run import Outcome, Stream
from replicator.survey import accept, require_survey
from replicator.target.state import (
    Checkpoint,
    add_table_states,
    create_checkpoint,
    load_checkpoint,
    load_table_states,
    migrate,
    set_phase,
)
from tests.conftest import DatabasePair
from tests.oracle import assert_same_rows

TIMEOUT_S = 30.0
_TOKEN = itertools.count(1)


class Case:
    """Tables of the same DDL on both sides (or of `target_ddl`), a slot, and a checkpoint where the slot begins."""

    def __init__(
        self,
        pair: DatabasePair,
        ddl: str,
        target_ddl: str | None = None,
        *,
        seed: str = "",
        target_role: str = "",
        **settings: Any,
    ) -> None:
        """``seed`` runs on both sides, as a snapshot would have left them. ``target_role`` owns the target's tables."""
        self.pair = pair
        self.too_early: list[str] = []  # why lives of the stream could not go on ahead of commits
        self.source = psycopg.connect(pair.source_dsn, autocommit=True)
        self.target = psycopg.connect(pair.target_dsn, autocommit=True)
        self.slot = self.source.info.dbname
        target_dsn = self._target_dsn(target_role)
        self.source.execute(ddl + seed)
        with psycopg.connect(target_dsn, autocommit=True) as owner:
            owner.execute((ddl if target_ddl is None else target_ddl) + seed)
        given = {"source": {"dsn": pair.source_dsn, "slot": self.slot}, "target": {"dsn": target_dsn},
                 "metrics": {"listen": ""}}  # fmt: skip
        self.settings = Settings(**(given | settings))
        self._thread: threading.Thread | None = None
        self._make_slot()

    def _target_dsn(self, role: str) -> str:
        if not role:
            return self.pair.target_dsn
        dbname = self.target.info.dbname
        self.pair.target.create_role(role)
        self.target.execute(f"ALTER DATABASE {dbname} OWNER TO {role}; ALTER SCHEMA public OWNER TO {role}")
        return str(self.pair.target.dsn(dbname, role))

    def _make_slot(self) -> None:
        writer = connect(self.settings.target.dsn, "target", purpose="test")
        source = connect(self.settings.source.dsn, "source", purpose="test")
        with writer, source:
            migrate(writer)
            routes = require_routes(self.settings, source, writer)
            ensure_publication(source, self.settings.source.publication, routes)
            [(lsn,)] = query(
                source, "SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput')", self.slot
            )
            create_checkpoint(writer, self.slot, Lsn.parse(lsn), *server_identity(source))
            add_table_states(writer, self.slot, [route.name for route in routes])
            for route in routes:
                self.target.execute(
                    "UPDATE replicator.table_state SET state = 'copied', snapshot_lsn = %s, record = %s"
                    " WHERE (table_schema, table_name) = (%s, %s)",
                    [lsn, Jsonb(record_of(route, self.settings.map_specs).to_json()), *route.name],
                )
            set_phase(writer, self.slot, "catching_up")

    # ── the stream's life ──────────────────────────────────────────────────────────────────────────────

    def start(self, until: Lsn | None = None) -> None:
        """Plan the routes from today's catalogs and stream from the checkpoint on."""
        assert self._thread is None
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._writer = self._new_writer()
        with connect(self.settings.source.dsn, "source", purpose="catalog") as source:
            states = load_table_states(self._writer, self.slot)
            found = require_survey(self.settings, source, self._writer, states, closely=True)
            accept(self.settings, self._writer, found)
        self._new_stream = lambda ahead: Stream(
            self.settings, found.routes, writer=self._writer, stop=self._stop, until=until, ahead=ahead
        )
        self.stream = self._new_stream(True)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _new_writer(self) -> Connection:
        return connect(self.settings.target.dsn, "target", purpose="apply")

    def _run(self) -> None:
        """As the service does."""
        try:
            try:
                self.outcome = self.stream.run()
            except TooEarly as exc:
                self.too_early.append(exc.message)
                assert self.stream.peer is not None
                with connect(self.settings.source.dsn, "source", purpose="catalog") as source:
                    end(source, self.stream.peer)
                self._writer.close()
                self._writer = self._new_writer()
                self.stream = self._new_stream(False)
                self.outcome = self.stream.run()
        except BaseException as exc:
            self.error = exc

    @property
    def running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._thread is not None

    def stop(self) -> None:
        """End the stream; its error is in `error`."""
        if self._thread is not None:
            self._stop.set()
            self._end()

    def _end(self) -> None:
        assert self._thread is not None
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        self._thread = None
        self._writer.close()

    def fails(self, kind: type[BaseException]) -> BaseException:
        """Wait until the stream ends by an error of this kind."""
        if self._thread is None:
            self.start()
        assert self._thread is not None
        self._thread.join(TIMEOUT_S)
        if self._thread.is_alive():
            self.stop()
            raise AssertionError(f"no {kind.__name__}: the stream went on")
        self._end()
        assert isinstance(self.error, kind), self.error
        return self.error

    def close(self) -> None:
        self.stop()
        self.source.close()
        self.target.close()

    # ── changes and their effect ───────────────────────────────────────────────────────────────────────

    def execute(self, *statements: str) -> None:
        """One transaction on the source."""
        with self.source.transaction():
            for statement in statements:
                self.source.execute(statement)

    def drain(self) -> None:
        """Return when everything that was committed on the source until now is committed on the target."""
        if self._thread is None:
            self.start()
        token = f"t{next(_TOKEN)}"
        emit_fence(self.source, token)
        self.wait(lambda: self.checkpoint().fence == token, "the fence to arrive")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if self._thread is not None and not self._thread.is_alive():
                self._end()
                if self.error is not None:
                    raise self.error
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.005)

    def same(self, *tables: str, **options: Any) -> None:
        """Drain, then compare these tables on both sides."""
        self.drain()
        for table in tables:
            assert_same_rows(self.source, self.target, table, **options)

    @contextmanager
    def one_batch(self) -> Iterator[None]:
        """The transactions of the block reach the applier as one batch: it waits for a lock meanwhile."""
        # A first start would note the timeline itself, and wait for the lock before it receives anything.
        [(timeline,)] = self.source.execute("SELECT timeline_id FROM pg_control_checkpoint()").fetchall()
        self.target.execute("UPDATE replicator.checkpoint SET timeline = %s", [timeline])
        with psycopg.connect(self.pair.target_dsn) as blocker:
            blocker.execute("SELECT FROM replicator.checkpoint FOR UPDATE")
            self.start()
            self.wait(self.applier_waits, "the applier to wait")
            yield
            token = f"t{next(_TOKEN)}"
            emit_fence(self.source, token)
            self.wait(lambda: self._received(token), "the receiver")
            blocker.rollback()
        self.wait(lambda: self.checkpoint().fence == token, "the fence to arrive")

    def applier_waits(self) -> bool:
        """Whether the applier's session waits for a lock."""
        return bool(self.rows(
            "SELECT FROM pg_stat_activity WHERE application_name = 'replicator apply' AND wait_event_type = 'Lock'"
            " AND datname = current_database()"))  # fmt: skip

    def _received(self, token: str) -> bool:
        batches = list(self.stream._inbox._batches)
        assert len(batches) <= 1, "the transactions do not fit one batch"
        return bool(batches) and batches[0].fence == token

    def checkpoint(self) -> Checkpoint:
        checkpoint = load_checkpoint(self.target, self.slot)
        assert checkpoint is not None
        return checkpoint

    def source_lsn(self) -> Lsn:
        return Lsn.parse(self.source.execute("SELECT pg_current_wal_lsn()::text").fetchall()[0][0])

    def confirmed_flush(self) -> Lsn:
        [(lsn,)] = self.source.execute(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", [self.slot]
        ).fetchall()
        return Lsn.parse(lsn)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of the target."""
        return self.target.execute(statement).fetchall()


def replays() -> float:
    """How many batches could not be applied as sets, in this process."""
    return metrics.BATCH_REPLAYS._value.get()
