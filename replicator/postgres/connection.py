"""Sessions on either server, pinned so that no database, role or service setting can change what we read or write."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, LiteralString
from weakref import WeakSet

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from replicator.errors import NEW_SNAPSHOT, ConfigError, ReplicatorError, SlotLost, TransientError
from replicator.postgres.diagnosis import WITHHELD_HINT, describe, is_withheld
from replicator.postgres.session import LOOK_TIMEOUT_S, Connection, Peer, Session, Side, sever

__all__ = [
    "Connection", "Side", "Statement", "connect", "hang_up", "query", "sever", "table_identifier", "translate",
    "translated",
]  # fmt: skip

_opened: WeakSet[Connection] = WeakSet()  # for `hang_up`
_opened_lock = threading.Lock()

_PINS: dict[str, str] = {
    "client_encoding": "UTF8",
    "client_min_messages": "warning",  # the stream heeds one of the server's
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "search_path": "",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    # Should this host vanish without a word, the servers find out, and let go of our locks and of the slot.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_PINS_SINCE: dict[int, dict[str, str]] = {170000: {"transaction_timeout": "0"}}
_SIDE_PINS: dict[Side, dict[str, str]] = {
    # An error instead of rows that a policy hides silently.
    "source": {"row_security": "off"},
    # Feedback confirms what the target has committed: that must be on its disk.
    "target": {"synchronous_commit": "on"},
}
# How libpq takes a URI apart: what stands before the first @ names user and password, unless a / comes first.
_URI = re.compile(r"postgres(?:ql)?://(?:[^/@]*@)?(?P<rest>[^?]*)", re.DOTALL)
_KEEPALIVE = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}

_TRANSIENT_STATES = (
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.TooManyConnections,
    errors.ConnectionException,
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.LockNotAvailable,
    errors.QueryCanceled,
    errors.DiskFull,
    errors.OutOfMemory,
    errors.InsufficientResources,
    errors.ReadOnlySqlTransaction,
    errors.ObjectInUse,
    errors.IdleInTransactionSessionTimeout,
    errors.SystemError,
)
# Up to server 17, from 18 on, and what a WAL sender says that looks for a segment of a slot just lost.
_SLOT_LOST = (
    "can no longer get changes from replication slot",
    "can no longer access replication slot",
    "has already been removed",
)
# libpq gives no SQLSTATE for a failed connection attempt, only the server's message.
_MISCONFIGURED = (
    # TLS, before "does not exist": these name files of ours, not of the server's.
    ("root certificate file", "name the CA's file in sslrootcert, or sslrootcert=system for the system's CAs"),
    ("could not read root certificate", "name the CA's file in sslrootcert: PEM, readable for this user"),
    ("does not match host name", "connect by a name that the server's certificate holds, or correct the certificate"),
    ("server does not support SSL", "turn on TLS at the server (ssl = on), or see that the DSN leads to it"),
    ("requires a valid client certificate", "give the role's certificate in sslcert and its key in sslkey"),
    ("certificate authentication failed", "the certificate of sslcert is of another role: its CN is the role's name"),
    ("private key file", "correct sslkey: it must be there and readable for this user alone (chmod 600)"),
    ("could not load private key", "correct sslkey; a key with a passphrase needs sslpassword"),
    ("could not read certificate file", "correct sslcert: PEM, readable for this user"),
    ("does not match private key", "sslcert and sslkey do not belong together"),
    (
        "channel binding",
        "channel_binding=require needs TLS and scram-sha-256: see sslmode, and the server's pg_hba.conf",
    ),
    ("password authentication failed", "correct the password (PGPASSWORD, a passfile or the DSN)"),
    ("no password supplied", "give a password through PGPASSWORD, a passfile, a service file or the DSN"),
    ("no pg_hba.conf entry", "allow this host, role and database in the server's pg_hba.conf"),
    ("does not exist", "correct the database or role name in the DSN"),
    ("must be superuser or replication role", "ALTER ROLE … REPLICATION, as described in the README"),
    ("permission denied to start WAL sender", "ALTER ROLE … REPLICATION, as described in the README"),
    (
        "certificate verify failed",
        "see that sslrootcert is the CA of the server's certificate, and that it has not expired",
    ),
    ("could not translate host name", "correct the host in the DSN"),
)


def connect(dsn: str, side: Side, *, purpose: str, replication: bool = False, autocommit: bool = True) -> Session:
    """Open a pinned session. ``purpose`` shows in ``pg_stat_activity`` as ``replicator PURPOSE``.

    Raises:
        ConfigError: unusable DSN, wrong password, a pooler's address, …
        TransientError: the server is not reachable now.
    """
    if not dsn:
        raise ConfigError(
            f"no DSN for the {side}",
            hint=f"give --{side}, REPLICATOR_{side.upper()}__DSN or [{side}] dsn in the settings",
        )
    with translated(side):
        conninfo = _conninfo(dsn, side, purpose, replication)
        conn = Session.connect(conninfo, autocommit=True, prepare_threshold=None)
        with _opened_lock:
            _opened.add(conn)
        try:
            # A look goes to the one host of the DSN's that this session is on.
            here = make_conninfo(dsn, host=conn.info.host, port=conn.info.port, connect_timeout=LOOK_TIMEOUT_S)
            conn.peer = Peer(purpose, conn.info.backend_pid, None, _conninfo(here, side, "look", False))
            _pin(conn, side, replication)
            conn.peer = replace(conn.peer, backend_start=_backend_start(conn))
        except BaseException:
            conn.close()
            raise
        if not autocommit:
            conn.autocommit = False
    return conn


def hang_up() -> None:
    """Cut every connection of this process. The servers roll back what was not committed."""
    with _opened_lock:
        connections = list(_opened)
    for conn in connections:
        sever(conn)


def _backend_start(conn: Connection) -> dt.datetime | None:
    rows = query(conn, "SELECT backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()")
    return rows[0][0] if rows else None


def _conninfo(dsn: str, side: Side, purpose: str, replication: bool) -> str:
    if (uri := _URI.match(dsn)) is not None and "@" in uri["rest"]:
        # The parser takes the end of the password for a host, and later messages would name it.
        raise ConfigError(
            f"the {side} DSN has another @ behind its user and password",
            hint="percent-encode what a password holds of @ / : ? # %: %40 for @, %2F for /",
        )
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # The parser's message quotes the DSN, and with it the password.
        raise ConfigError(
            f"the {side} DSN is not a libpq connection string", hint="write postgresql://user@host:5432/database"
        ) from None
    _refuse_pooler(side, str(given.get("host", "")), str(given.get("port", "")))
    parameters: dict[str, Any] = {key: value for key, value in _KEEPALIVE.items() if key not in given}
    parameters["application_name"] = f"replicator {purpose}"[:63]
    if replication:
        parameters["replication"] = "database"
    return make_conninfo(dsn, **parameters)


def _refuse_pooler(side: Side, host: str, port: str) -> None:
    if "6543" in port.split(",") or "pooler.supabase." in host:
        raise ConfigError(
            f"the {side} DSN leads to a connection pooler, which cannot replicate",
            hint="use the direct connection: db.<ref>.supabase.co, port 5432",
        )


def _pin(conn: Connection, side: Side, replication: bool) -> None:
    pins = _PINS | _SIDE_PINS[side]
    for since, more in _PINS_SINCE.items():
        if conn.info.server_version >= since:
            pins |= more
    statement = sql.SQL("; ").join(
        sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in pins.items()
    )
    # Without parameters psycopg uses the simple protocol, the only one a WAL sender speaks.
    conn.execute(statement)
    if not replication:
        conn.execute("SELECT pg_catalog.set_config('search_path', '', false)")
        # Should we be killed in the middle of a statement, the server is to notice then, and not once the statement
        # ends: until then it would hold our locks. Not every system that PostgreSQL runs on can.
        with contextlib.suppress(errors.InvalidParameterValue):
            conn.execute("SET client_connection_check_interval = '1s'")


@contextlib.contextmanager
def translated(side: Side) -> Iterator[None]:
    """Turn the driver's errors into ours, by remedy. No value of a row is kept, see `diagnosis`."""
    try:
        yield
    except ReplicatorError:
        raise
    except psycopg.Error as exc:
        raise translate(exc, side) from exc


def translate(exc: psycopg.Error, side: Side, *, of_rows: bool = False) -> ReplicatorError:
    """Our error for a driver's error; ``of_rows`` as of `describe`."""
    primary = exc.diag.message_primary
    text = f"{side}: {describe(exc, of_rows=of_rows)}"
    if primary and any(fragment in primary for fragment in _SLOT_LOST):
        return SlotLost(text, hint=f"the WAL it needs is gone: {NEW_SNAPSHOT}")
    if primary == "recovery is in progress":
        return TransientError(
            f"{text}: it is a standby",
            hint=f"the {side} DSN must lead to the primary; with several hosts, add target_session_attrs=primary",
        )
    if isinstance(exc, _TRANSIENT_STATES):
        return TransientError(text)
    if exc.sqlstate is None and isinstance(exc, psycopg.OperationalError):
        for fragment, hint in _MISCONFIGURED:
            if fragment in str(exc):
                return ConfigError(text, hint=hint)
        return TransientError(
            text, hint="see that the server is up and can be reached from here, at this host and port"
        )
    if isinstance(exc, errors.InvalidAuthorizationSpecification):
        return ConfigError(text, hint="correct the role and password of the DSN")
    if isinstance(exc, errors.InsufficientPrivilege) and not is_withheld(exc):
        if primary and "row-level security" in primary:
            return ConfigError(
                text, hint="ALTER ROLE … BYPASSRLS, or use a role that has it: policies hide rows from others"
            )
        return ConfigError(text, hint=f"grant the role of the {side} DSN what the README lists under “Roles”")
    if is_withheld(exc, of_rows=of_rows):
        return ReplicatorError(text, hint=WITHHELD_HINT)
    return ReplicatorError(f"{text} ({exc.sqlstate})")


Statement = LiteralString | sql.SQL | sql.Composed


def query(conn: Connection, statement: Statement, *parameters: object) -> list[tuple[Any, ...]]:
    """All rows of one statement."""
    return conn.execute(statement, parameters or None).fetchall()


def table_identifier(name: tuple[str, str]) -> sql.Identifier:
    """``"schema"."table"``, quoted."""
    return sql.Identifier(*name)
