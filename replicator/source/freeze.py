"""Close the source to writers, and open it again.

Two means, because each alone has a hole. The *lock* stops every writer whatever its role, and lets go by itself when
we are gone; but a session that waited for it writes as soon as it is released. The *database setting*
``default_transaction_read_only`` stays, and gives new sessions a clean error once the lock is gone (a statement waits
for the lock before it is found to be read-only); but sessions that were there before keep their own value, and any
session may set another.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import errors, pq, sql

from replicator.errors import Refused
from replicator.model.schema import TableName, show_table
from replicator.postgres.connection import Connection, query, table_identifier, translated

_SETTING = "default_transaction_read_only"
# The first attempts stay under the default deadlock_timeout (1 s): a deadlock with a writer then ends ours, not its.
_FIRST_ATTEMPT_S = 0.5
_LONGEST_ATTEMPT_S = 10.0
_PAUSE_S = (0.1, 0.4)  # writers that queued up behind a failed attempt get through
# A line can die without either end noticing, and the server would keep the writers out for hours. So it lets go of a
# lock whose holder has said nothing for so long.
_LET_GO_AFTER = "30s"
_SAY_SOMETHING_S = 5.0


@dataclass(frozen=True, slots=True)
class Blocker:
    """A transaction on the source that the lock would have to wait for; ``pid`` is 0 for a prepared one."""

    pid: int
    role: str
    seconds: float  # since the transaction began


@dataclass(frozen=True, slots=True)
class Terminated:
    """What became of other sessions: how many were ended, and how many resisted (a superuser's, say)."""

    ended: int
    left: int


class Freeze:
    """The lock on all replicated tables, held by one open transaction of its own session."""

    def __init__(self, conn: Connection, tables: Sequence[TableName]) -> None:
        """Locks nothing yet. ``conn`` is in autocommit mode and must not be used for anything else."""
        self._conn = conn
        self._tables = tables
        self.attempts = 0
        self._released = threading.Event()
        self._talking = threading.Lock()

    def acquire(self, deadline: float, clock: Callable[[], float] = time.monotonic) -> float:
        """Lock all tables in EXCLUSIVE mode; returns when the attempt that succeeded began (``clock``'s seconds).

        Each attempt is short, growing up to 10 s, since writers queue up behind a lock that is waited for.

        Raises:
            Refused: not granted until ``deadline``.
            TransientError: the connection was lost.
        """
        patience_s = _FIRST_ATTEMPT_S
        with translated("source"):
            self._conn.execute(
                sql.SQL("SET idle_in_transaction_session_timeout = {}").format(sql.Literal(_LET_GO_AFTER))
            )
        while True:
            began = clock()
            if self._try(min(patience_s, max(deadline - began, 0.05))):
                threading.Thread(target=self._keep, name="freeze", daemon=True).start()
                return began
            if clock() >= deadline:
                raise Refused(
                    f"the source's tables could not be locked in {self.attempts} attempts: transactions hold them",
                    hint="end the long transactions that `replicator cutover --dry-run` lists, then try again",
                )
            time.sleep(random.uniform(*_PAUSE_S))  # noqa: S311 - a pause, not a secret
            patience_s = min(patience_s * 1.5, _LONGEST_ATTEMPT_S)

    def _try(self, patience_s: float) -> bool:
        self.attempts += 1
        # Without ONLY, so that a partitioned table's partitions are locked with it.
        names = sql.SQL(", ").join(table_identifier(name) for name in self._tables)
        # statement_timeout, for lock_timeout counts anew at each table.
        limit = sql.Literal(f"{max(int(patience_s * 1000), 1)}ms")
        with translated("source"):
            try:
                self._conn.execute("BEGIN")
                self._conn.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(limit))
                self._conn.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(names))
                self._conn.execute("SET LOCAL statement_timeout = 0")
            except (errors.QueryCanceled, errors.LockNotAvailable, errors.DeadlockDetected):
                self._conn.execute("ROLLBACK")
                return False
        return True

    def _keep(self) -> None:
        while not self._released.wait(_SAY_SOMETHING_S):
            if not self.is_held():
                return

    def is_held(self) -> bool:
        """Whether the lock has been held without a break since `acquire`: asks the server."""
        with self._talking:
            if self._conn.closed or self._conn.info.transaction_status is not pq.TransactionStatus.INTRANS:
                return False
            try:
                self._conn.execute("SELECT 1")
            except psycopg.Error:
                return False
            return True

    @property
    def pid(self) -> int:
        """The server process that holds the lock."""
        return self._conn.info.backend_pid

    def release(self) -> None:
        """Let the writers go on; safe to repeat, and right also when the connection is broken."""
        self._released.set()
        self._conn.close()


def load_read_only(conn: Connection) -> str | None:
    """The database's own setting of ``default_transaction_read_only``; None where it has none."""
    rows = query(
        conn,
        """
        SELECT pg_catalog.split_part(entry, '=', 2)
        FROM pg_catalog.pg_db_role_setting s
        JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase AND d.datname = pg_catalog.current_database()
        CROSS JOIN LATERAL unnest(s.setconfig) AS entry
        WHERE s.setrole = 0 AND pg_catalog.split_part(entry, '=', 1) = %s
        """,
        _SETTING,
    )
    return str(rows[0][0]) if rows else None


def store_read_only(conn: Connection, value: str | None) -> None:
    """Set the database's ``default_transaction_read_only``; None removes it. New sessions follow, old ones do not.

    Raises:
        ConfigError: the role does not own the database.
    """
    with translated("source"):
        if load_read_only(conn) == value:
            return
        database = sql.Identifier(conn.info.dbname)
        if value is None:
            statement = sql.SQL("ALTER DATABASE {} RESET {}").format(database, sql.Identifier(_SETTING))
        else:
            parts = database, sql.Identifier(_SETTING), sql.Literal(value)
            statement = sql.SQL("ALTER DATABASE {} SET {} = {}").format(*parts)
        conn.execute(statement)


def may_store_read_only(conn: Connection) -> bool:
    """Whether this role may set the database's settings."""
    [(allowed,)] = query(
        conn,
        """
        SELECT pg_catalog.pg_has_role(datdba, 'USAGE') FROM pg_catalog.pg_database
        WHERE datname = pg_catalog.current_database()
        """,
    )
    return bool(allowed)


def roles_of_their_own_mind(conn: Connection) -> list[str]:
    """Roles with a ``default_transaction_read_only`` of their own: the database's does not reach their sessions."""
    rows = query(
        conn,
        """
        SELECT DISTINCT pg_catalog.pg_get_userbyid(s.setrole)::text
        FROM pg_catalog.pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) AS entry
        WHERE s.setrole <> 0 AND pg_catalog.split_part(entry, '=', 1) = %s
          AND s.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database
                                    WHERE datname = pg_catalog.current_database()))
        ORDER BY 1
        """,
        _SETTING,
    )
    return [role for (role,) in rows]


def tables_not_lockable(conn: Connection, tables: Sequence[TableName]) -> list[str]:
    """The tables that this role may not lock in EXCLUSIVE mode."""
    rows = query(
        conn,
        """
        SELECT n.nspname, c.relname FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE (n.nspname, c.relname) IN (SELECT s, t FROM unnest(%s::text[], %s::text[]) AS wanted (s, t))
          AND NOT pg_catalog.has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE')
        ORDER BY 1, 2
        """,
        [schema for schema, _ in tables],
        [name for _, name in tables],
    )
    return [show_table((schema, name)) for schema, name in rows]


def load_blockers(conn: Connection, tables: Sequence[TableName], older_than_s: float) -> list[Blocker]:
    """Transactions of at least this age whose locks on these tables are in the way of the freeze, prepared ones too."""
    rows = query(
        conn,
        """
        WITH roots AS (
            SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE (n.nspname, c.relname) IN (SELECT s, t FROM unnest(%s::text[], %s::text[]) AS wanted (s, t))
        ), held AS (
            SELECT DISTINCT l.pid FROM pg_catalog.pg_locks l
            WHERE l.locktype = 'relation' AND l.granted AND l.mode <> 'AccessShareLock'
              AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
              AND l.relation IN (
                SELECT oid FROM roots UNION ALL
                SELECT t.relid FROM roots CROSS JOIN LATERAL pg_catalog.pg_partition_tree(roots.oid) AS t))
        SELECT a.pid, coalesce(a.usename::text, ''),
               extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.backend_start))::float8
        FROM pg_catalog.pg_stat_activity a
        WHERE a.pid IN (SELECT pid FROM held) AND a.pid <> pg_catalog.pg_backend_pid()
        UNION ALL
        SELECT 0, p.owner::text, extract(epoch FROM clock_timestamp() - p.prepared)::float8
        FROM pg_catalog.pg_prepared_xacts p
        WHERE p.database = pg_catalog.current_database() AND EXISTS (SELECT FROM held WHERE held.pid IS NULL)
        """,
        [schema for schema, _ in tables],
        [name for _, name in tables],
    )
    found = [Blocker(pid, role, seconds or 0.0) for pid, role, seconds in rows]
    return sorted((b for b in found if b.seconds >= older_than_s), key=lambda blocker: -blocker.seconds)


def cancel_exclusive_waiters(conn: Connection, freeze_pid: int) -> int:
    """Cancel statements (TRUNCATE, DDL) that wait for the frozen tables and let nobody read them meanwhile; how many.

    Reads queue up behind such a statement, those of a verification too.
    """
    with translated("source"):
        rows = query(
            conn,
            """
            SELECT DISTINCT l.pid FROM pg_catalog.pg_locks l
            WHERE l.locktype = 'relation' AND NOT l.granted AND l.mode = 'AccessExclusiveLock'
              AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
              AND %s = ANY (pg_catalog.pg_blocking_pids(l.pid))
            """,
            freeze_pid,
        )
        return sum(_signal(conn, "SELECT pg_catalog.pg_cancel_backend(%s)", pid) for (pid,) in rows)


_OTHERS = """
    SELECT a.pid FROM pg_catalog.pg_stat_activity a
    WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid() AND a.pid <> %(freeze)s
      AND coalesce(a.backend_type, 'client backend') = 'client backend'
      AND a.pid NOT IN (SELECT r.pid FROM pg_catalog.pg_stat_replication r)
      AND NOT (a.application_name LIKE 'replicator %%' AND a.usename = current_user)
      AND (coalesce(a.backend_start <= %(since)s, true) OR %(freeze)s = ANY (pg_catalog.pg_blocking_pids(a.pid)))
"""


def terminate_others(conn: Connection, freeze_pid: int, patience_s: float = 1.0) -> Terminated:
    """End the sessions of this database that could write once the lock is released.

    Those are all that exist when we begin, for a session keeps the ``default_transaction_read_only`` that it started
    with, and every later one that waits for our lock.

    Args:
        freeze_pid: the process that holds the lock, -1 if none does.
        patience_s: how long to go on until none is left.
    """
    with translated("source"):
        [(since,)] = query(conn, "SELECT clock_timestamp()")
        ended: set[int] = set()
        refused: set[int] = set()
        deadline = time.monotonic() + patience_s
        while True:
            present = {pid for (pid,) in conn.execute(_OTHERS, {"freeze": freeze_pid, "since": since})}
            for pid in present - refused - ended:
                (ended if _signal(conn, "SELECT pg_catalog.pg_terminate_backend(%s)", pid) else refused).add(pid)
            if not present - refused or time.monotonic() > deadline:
                return Terminated(len(ended - present), len(present))
            time.sleep(0.005)


def _signal(conn: Connection, statement: LiteralString, pid: int) -> bool:
    try:
        query(conn, statement, pid)
    except errors.InsufficientPrivilege:
        return False
    return True
