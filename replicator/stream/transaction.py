"""The target transaction that changes go into: opened by the first of them, committed with the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from replicator.errors import StateError
from replicator.failpoints import failpoint
from replicator.model.change import Op
from replicator.model.schema import TableName
from replicator.postgres.connection import Connection
from replicator.postgres.copy import CopyIn, run_simple
from replicator.postgres.pipeline import Pipeline, Prepared
from replicator.routing.route import Route
from replicator.stream.compose import Copy, Step
from replicator.stream.refusals import Miscount
from replicator.target.unaltered import UNALTERED
from replicator.target.unaltered import parameters as unaltered

_BEGIN: Prepared = (b"BEGIN", ())
_COMMIT: Prepared = (b"COMMIT", ())
# The source's transaction may have put them off: its changes one by one would break them here.
_DEFER: Prepared = (b"SET CONSTRAINTS ALL DEFERRED", ())


class Transaction:
    """One at a time, again and again. An error leaves it open and failed: roll it back, wholly or to a savepoint."""

    def __init__(
        self, conn: Connection, routes: Sequence[Route], *, replica_role: bool, meanwhile: Callable[[], None]
    ) -> None:
        """``conn`` is in autocommit mode. ``replica_role``: no constraint of it can be deferred, since none acts;
        ``meanwhile``: called while the server works on a COPY.
        """
        self._conn = conn
        self._meanwhile = meanwhile
        self._pipeline = Pipeline(conn)
        self._routes = routes
        self._replica_role = replica_role
        self._touched: set[TableName] = set()
        self.is_open = False

    def touch(self, tables: Iterable[TableName]) -> None:
        """Tables that changes went into: the commit looks whether they are still what they were."""
        self._touched.update(tables)

    def begin(self) -> None:
        """Open it, unless it is open."""
        opening = self._opening()
        if opening:
            self._pipeline.run(opening)

    def run(self, steps: Iterable[Step | Copy]) -> None:
        """Run steps, all that stand between two COPYs in one round trip.

        Raises:
            Miscount: one has hit another number of rows than expected.
        """
        waiting: list[Step] = []
        for step in steps:
            if isinstance(step, Step):
                waiting.append(step)
            else:
                self._run(waiting)
                waiting = []
                self._copy(step)
        self._run(waiting)

    def commit(self, checkpoint: Prepared, steps: Iterable[Step] = ()) -> None:
        """Run steps, store the checkpoint and commit, all in one round trip; on an error everything is rolled back.

        Raises:
            StateError: there is no row to store the checkpoint in.
            psycopg.Error: a deferred constraint does not hold, a step fails or hits another number of rows, …
        """
        failpoint("before_commit", self._conn)
        statements = self._opening()
        statements += [step.strict for step in steps]
        if self._touched:
            statements.append((UNALTERED, unaltered(self._routes, self._touched)))
        try:
            *_, stored, _ = self._pipeline.run([*statements, checkpoint, _COMMIT])
        except Exception:
            self.rollback()
            raise
        failpoint("after_commit", self._conn)
        self._close()
        if stored != 1:
            raise StateError("the checkpoint is gone: somebody has removed it while the stream was running")

    def rollback(self) -> None:
        """Forget what has been done since the last commit."""
        if self.is_open:
            self._close()
            self.execute("ROLLBACK")

    def execute(self, statement: str) -> None:
        """Run statements without parameters and results, such as those for savepoints, in the open transaction."""
        run_simple(self._conn, statement.encode())

    def _run(self, steps: Collection[Step]) -> None:
        if not steps:
            return
        opening = self._opening()
        hits = self._pipeline.run([*opening, *((step.statement, step.parameters) for step in steps)])
        for step, hit in zip(steps, hits[len(opening) :], strict=True):
            if step.expected is not None and hit != step.expected:
                raise Miscount(step.table, step.op, step.expected, hit)

    def _copy(self, step: Copy) -> None:
        self.begin()
        copy = CopyIn(self._conn, step.statement)
        count = len(step.rows[0]).to_bytes(2, "big")
        for row in step.rows:
            copy.write(count + b"".join(row))
        taken = copy.finish(self._meanwhile)
        if taken != len(step.rows):
            raise Miscount(step.table, Op.INSERT, len(step.rows), taken)

    def _opening(self) -> list[Prepared]:
        """What has to come first: nothing, if it is open; from here on it is."""
        if self.is_open:
            return []
        self.is_open = True
        return [_BEGIN] if self._replica_role else [_BEGIN, _DEFER]

    def _close(self) -> None:
        self.is_open = False
        self._touched.clear()
