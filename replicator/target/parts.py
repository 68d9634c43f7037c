"""The parts of a table's copy, each noted in the transaction that brings its rows.

Where workers can be lost, a task may be given out twice: the second one finds the part's row and leaves it at that.
"""

from __future__ import annotations

from collections.abc import Sequence

from replicator.model.schema import TableName
from replicator.postgres.connection import Connection, query

PartKey = tuple[TableName, int, int]  # target table, attempt, number of the part


def start_parts(conn: Connection, slot: str, keys: Sequence[PartKey]) -> list[tuple[int, int]] | None:
    """Enter parts that one transaction copies, to be committed with their rows.

    Waits while somebody else copies the same ones.

    Returns:
        None; or, if they are in already, the rows and bytes of each.
    """
    cursor = conn.execute(
        """
        INSERT INTO replicator.copied_part (slot, table_schema, table_name, attempt, part)
        SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::integer[], %s::integer[]) ON CONFLICT DO NOTHING
        """,
        (slot, *_columns(keys)),
    )
    if cursor.rowcount == len(keys):
        return None
    rows = query(
        conn,
        """
        SELECT table_schema, table_name, attempt, part, rows, bytes
        FROM unnest(%s::text[], %s::text[], %s::integer[], %s::integer[]) AS k (table_schema, table_name, attempt, part)
        JOIN replicator.copied_part USING (table_schema, table_name, attempt, part) WHERE slot = %s
        """,
        *_columns(keys),
        slot,
    )
    found = {((schema, name), attempt, part): (count, size) for schema, name, attempt, part, count, size in rows}
    return [found[key] for key in keys]


def finish_parts(conn: Connection, slot: str, keys: Sequence[PartKey], brought: Sequence[tuple[int, int]]) -> None:
    """Note what each part has brought: rows and bytes."""
    conn.execute(
        """
        UPDATE replicator.copied_part p SET rows = k.rows, bytes = k.bytes
        FROM unnest(%s::text[], %s::text[], %s::integer[], %s::integer[], %s::bigint[], %s::bigint[])
             AS k (table_schema, table_name, attempt, part, rows, bytes)
        WHERE p.slot = %s AND p.table_schema = k.table_schema AND p.table_name = k.table_name
          AND p.attempt = k.attempt AND p.part = k.part
        """,
        (*_columns(keys), [rows for rows, _ in brought], [size for _, size in brought], slot),
    )


def _columns(keys: Sequence[PartKey]) -> tuple[list[str], list[str], list[int], list[int]]:
    return (
        [schema for (schema, _), _, _ in keys],
        [name for (_, name), _, _ in keys],
        [attempt for _, attempt, _ in keys],
        [part for _, _, part in keys],
    )
