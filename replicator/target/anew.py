"""Back to the beginning: what is recorded of a replication whose stream cannot go on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from replicator.model.schema import TableName
from replicator.postgres.connection import Connection

_STATEMENTS: Final = (
    """
    UPDATE replicator.checkpoint
    SET phase = 'new', applied_lsn = '0/0', timeline = NULL, commit_time = NULL, fence = NULL, lag_seconds = NULL,
        problem = NULL, updated_at = clock_timestamp()
    WHERE slot = %(slot)s
    """,
    """
    DELETE FROM replicator.table_state
    WHERE slot = %(slot)s
      AND (table_schema, table_name) NOT IN (SELECT * FROM unnest(%(schemas)s::text[], %(names)s::text[]))
    """,
    # A raised attempt bars copies that outlived their process; 0 says that no row in the table is ours.
    """
    UPDATE replicator.table_state
    SET state = 'pending', attempt = CASE WHEN attempt > 0 THEN attempt + 1 ELSE 0 END, snapshot_lsn = NULL,
        record = NULL, published = NULL, rows_copied = 0, bytes_copied = 0, rows_applied = 0,
        differences = NULL, started_at = NULL, finished_at = NULL
    WHERE slot = %(slot)s
    """,
    "DELETE FROM replicator.cutover_step WHERE slot = %(slot)s",
    "DELETE FROM replicator.copied_part WHERE slot = %(slot)s",
    # What is refused or has no target ID is found again where its rows are still there.
    "DELETE FROM replicator.quarantine WHERE slot = %(slot)s",
    """
    DELETE FROM replicator.unmapped_id
    WHERE (table_schema, table_name) IN (SELECT * FROM unnest(%(schemas)s::text[], %(names)s::text[]))
    """,
)


def start_over(conn: Connection, slot: str, names: Iterable[TableName]) -> None:
    """Forget the position, back to phase ``new``. ID maps and the definitions of dropped indexes stay.

    Args:
        conn: inside a transaction.
        names: the target tables to be copied again; those that hold rows of ours stay marked as such, to be emptied
            then. What is recorded of other tables is forgotten.
    """
    wanted = sorted(names)
    parameters = {"slot": slot, "schemas": [schema for schema, _ in wanted], "names": [name for _, name in wanted]}
    for statement in _STATEMENTS:
        conn.execute(statement, parameters)
