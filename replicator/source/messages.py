"""Logical messages: the only thing that we ever write into the source's WAL."""

from __future__ import annotations

from replicator.model.lsn import Lsn
from replicator.postgres.connection import Connection, query

PREFIX = "replicator"
FENCE = b"fence:"


def emit_fence(conn: Connection, token: str) -> Lsn:
    """Write a transactional message: once the stream delivers it, everything committed before has been delivered.

    ``conn`` must be in autocommit mode. Returns the message's own LSN, which lies before its commit.
    """
    [(lsn,)] = query(conn, "SELECT pg_catalog.pg_logical_emit_message(true, %s, %s)::text", PREFIX, f"fence:{token}")
    return Lsn.parse(lsn)


def emit_heartbeat(conn: Connection) -> Lsn:
    """Write a message of its own transaction, so that an idle source's slot moves and its lag is measured.

    Transactional, because its commit flushes the WAL: a message alone would wait for the WAL writer.
    """
    [(lsn,)] = query(conn, "SELECT pg_catalog.pg_logical_emit_message(true, %s, 'heartbeat')::text", PREFIX)
    return Lsn.parse(lsn)
