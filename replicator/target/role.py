"""What the target's role may do."""

from __future__ import annotations

from psycopg import errors

from replicator.postgres.connection import Connection


def may_be_replica(conn: Connection) -> bool:
    """Whether this role may set ``session_replication_role = replica``: no triggers fire, no foreign key is checked.

    Superusers may; others once they were granted SET on that parameter (server 15+).
    """
    try:
        with conn.transaction(force_rollback=True):
            conn.execute("SET LOCAL session_replication_role = replica")
    except errors.InsufficientPrivilege:
        return False
    return True
