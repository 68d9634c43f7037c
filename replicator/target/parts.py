"""The parts of a table's copy, each noted in the transaction that brings its rows.

Where workers can be lost, a task may be given out twice: the second one finds the part's row and leaves it at that.
"""

from __future__ import annotations

from replicator.model.schema import TableName
from replicator.postgres.connection import Connection, query


def start_part(conn: Connection, slot: str, name: TableName, attempt: int, part: int) -> tuple[int, int] | None:
    """Enter one part of a table's copy, to be committed with its rows; rows and bytes, if it is in already.

    Waits while somebody else copies the same part.
    """
    cursor = conn.execute(
        "INSERT INTO replicator.copied_part (slot, table_schema, table_name, attempt, part)"
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (slot, *name, attempt, part),
    )
    if cursor.rowcount == 1:
        return None
    [(rows, size)] = query(
        conn,
        """
        SELECT rows, bytes FROM replicator.copied_part
        WHERE slot = %s AND table_schema = %s AND table_name = %s AND attempt = %s AND part = %s
        """,
        slot,
        *name,
        attempt,
        part,
    )
    return rows, size


def finish_part(conn: Connection, slot: str, name: TableName, attempt: int, part: int, rows: int, size: int) -> None:
    """Note what the part has brought: ``size`` bytes."""
    conn.execute(
        """
        UPDATE replicator.copied_part SET rows = %s, bytes = %s
        WHERE slot = %s AND table_schema = %s AND table_name = %s AND attempt = %s AND part = %s
        """,
        (rows, size, slot, *name, attempt, part),
    )
