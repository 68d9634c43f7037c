"""Two databases and the service between them, in a thread of the test: snapshot, stream, new start and all."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from typing import Any

import psycopg

from replicator.cli.copying import Selection, copy
from replicator.config import Settings
from replicator.errors import ReplicatorError
from replicator.model.schema import parse_table_name
from replicator.postgres.connection import connect
from replicator.service import Service
from replicator.status import Status, StatusReader
from replicator.survey import Survey, survey
from replicator.target.state import load_table_states
from tests.conftest import DatabasePair
from tests.oracle import assert_same_rows

TIMEOUT_S = 60.0


class Moving:
    """Without settings of its own all tables of schema public are meant."""

    def __init__(self, pair: DatabasePair, ddl: str, target_ddl: str | None = None, *, rows: str = "", **settings: Any):
        self.pair = pair
        self.source = psycopg.connect(pair.source_dsn, autocommit=True)
        self.target = psycopg.connect(pair.target_dsn, autocommit=True)
        self.slot = f"slot_{self.source.info.dbname}"
        self.source.execute(ddl + rows)
        self.target.execute(ddl if target_ddl is None else target_ddl)
        self.given: dict[str, Any] = {
            "source": {"dsn": pair.source_dsn, "slot": self.slot, "publication": self.slot},
            "target": {"dsn": pair.target_dsn}, "metrics": {"listen": ""}, **settings,
        }  # fmt: skip
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None

    @property
    def settings(self) -> Settings:
        return Settings(**self.given)

    # ── the service's life ─────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        assert self._thread is None
        self.error = None
        self.service = Service(self.settings, truncate=False, until=None, until_caught_up=False)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.service.run()
        except BaseException as exc:
            self.error = exc

    def stop(self) -> None:
        if self._thread is not None:
            self.service.stop.set()
            self._thread.join(TIMEOUT_S)
            assert not self._thread.is_alive()
            self._thread = None
        if self.error is not None:
            raise self.error

    def ends(self, *says: str) -> ReplicatorError:
        """It ends by itself, with an error that says this in message and hint."""
        if self._thread is None:
            self.start()
        assert self._thread is not None
        self._thread.join(TIMEOUT_S)
        if self._thread.is_alive():
            self.stop()
            raise AssertionError("the service went on")
        self._thread = None
        error, self.error = self.error, None
        assert isinstance(error, ReplicatorError), error
        text = f"{error.message} — {error.hint}"
        for each in says:
            assert re.search(each, text), f"{each!r} is not in {text}"
        return error

    def drain(self) -> None:
        """All that is on the source now is on the target."""
        if self._thread is None:
            self.start()
        [(lsn,)] = self.source.execute("SELECT pg_current_wal_insert_lsn()::text").fetchall()
        self.wait(lambda: self._has_applied(lsn), f"{lsn} to be applied")
        self.wait(self._slot_is_read, "the stream to begin")

    def _slot_is_read(self) -> bool:
        rows = self.source.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [self.slot])
        return rows.fetchall() == [(True,)]

    def _has_applied(self, lsn: str) -> bool:
        if self.target.execute("SELECT to_regclass('replicator.checkpoint')").fetchall() == [(None,)]:
            return False
        rows = self.target.execute(
            "SELECT phase NOT IN ('new', 'copying') AND applied_lsn >= %s::pg_lsn FROM replicator.checkpoint", [lsn]
        ).fetchall()
        return rows == [(True,)]

    def wait(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if self._thread is not None and not self._thread.is_alive():
                self._thread = None
                assert self.error is not None, "the service has ended"
                raise self.error
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.02)

    def close(self) -> None:
        try:
            with contextlib.suppress(ReplicatorError):  # of the end that it came to
                self.stop()
        finally:
            self.source.close()
            self.target.close()

    # ── changes, and what becomes of them ──────────────────────────────────────────────────────────────

    def on_source(self, *statements: str) -> None:
        """One transaction."""
        with self.source.transaction():
            for statement in statements:
                self.source.execute(statement)

    def on_both(self, statement: str) -> None:
        self.target.execute(statement)
        self.source.execute(statement)

    def copy(self, *tables: str) -> None:
        """``snapshot --table``, with the service stopped."""
        copy(self.settings, Selection(frozenset(map(parse_table_name, tables)), frozenset(), truncate=False), None)

    def same(self, *tables: str, **options: Any) -> None:
        """Drained, and equal row by row; then stopped."""
        self.drain()
        self.stop()
        for table in tables:
            assert assert_same_rows(self.source, self.target, table, **options) > 0

    def survey(self) -> Survey:
        with (
            connect(self.pair.source_dsn, "source", purpose="test") as source,
            connect(self.pair.target_dsn, "target", purpose="test") as target,
        ):
            return survey(self.settings, source, target, load_table_states(target, self.slot), closely=True)

    def notes(self) -> str:
        return "\n".join(f"{drift} — {drift.remedy}" for drift in self.survey().notes)

    def status(self) -> Status:
        reader = StatusReader(self.settings)
        try:
            return reader.read()
        finally:
            reader.close()

    def applied(self) -> str:
        [(lsn,)] = self.target.execute("SELECT applied_lsn::text FROM replicator.checkpoint").fetchall()
        return str(lsn)


def statement_of(error: ReplicatorError) -> str:
    """The ALTER TABLE that a hint asks for."""
    found = re.search(r"(ALTER TABLE [^;]*?)( on the target|, and then|, with|;)", error.hint)
    assert found, error.hint
    return found[1]
