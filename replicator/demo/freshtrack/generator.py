"""Load seeded sample data into the source, and write the user map that goes with it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from replicator.demo.freshtrack.rows import COLUMNS, Row, SampleRows
from replicator.demo.freshtrack.schema import TABLES

Progress = Callable[[str, int], object]  # after each table: its name and the number of rows loaded

_ROWS_PER_WRITE = 1_000
_STACK_AUTH = uuid.uuid5(uuid.NAMESPACE_URL, "https://stack-auth.example/users")
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def generate(conn: psycopg.Connection[Any], rows: int, seed: int, progress: Progress | None = None) -> dict[str, int]:
    """Fill the empty source with about `rows` rows, 1000 at least; some 70 % are ``sensor_readings``.

    The same `rows` and `seed` give the same data. Commits, unless the caller has a transaction open. Needs
    a superuser: triggers and foreign key checks are off meanwhile.

    Returns:
        Rows per table, ``auth.users`` included.
    """
    counts: dict[str, int] = {}
    with conn.transaction():
        conn.execute("SET LOCAL session_replication_role = replica")
        for table, table_rows in SampleRows(rows, seed).tables():
            counts[table] = _copy(conn, table, table_rows)
            if progress is not None:
                progress(table, counts[table])
        conn.execute("SET LOCAL session_replication_role = origin")
        for table in TABLES:  # a server in use has statistics
            conn.execute(sql.SQL("ANALYZE {}").format(sql.Identifier("public", table)))
    return counts


def write_map_file(conn: psycopg.Connection[Any], path: Path, *, leave_out: int) -> dict[str, str]:
    """Write a user-mapping.json of all ``auth.users`` but `leave_out` that have a profile.

    Returns:
        Supabase user ID → Stack Auth user ID, as written; the target IDs follow from the source IDs.
    """
    users = conn.execute(
        "SELECT u.id::text, u.email FROM auth.users u"
        " ORDER BY EXISTS (SELECT FROM public.profiles p WHERE p.user_id = u.id) DESC, u.id OFFSET %s",
        [leave_out],
    ).fetchall()
    now = datetime.now(UTC).replace(microsecond=0)
    mappings = [
        {
            "supabaseUserId": user,
            "stackAuthUserId": str(uuid.uuid5(_STACK_AUTH, user)),
            "email": email,
            "migratedAt": now.isoformat(),
        }
        for user, email in users
    ]
    document = {
        "generatedAt": now.isoformat(),
        "retainUntil": (now + timedelta(days=90)).isoformat(),
        "mappings": mappings,
    }
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return {entry["supabaseUserId"]: entry["stackAuthUserId"] for entry in mappings}


def _copy(conn: psycopg.Connection[Any], table: str, rows: Iterator[Row]) -> int:
    """COPY `rows` into `table` as text: PostgreSQL parses it faster than Python builds binary fields."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(*table.split(".")) if "." in table else sql.Identifier("public", table),
        sql.SQL(", ").join(map(sql.Identifier, COLUMNS[table].split())),
    )
    count = 0
    with conn.cursor() as cursor, cursor.copy(statement) as copy:
        while lines := ["\t".join(map(_field, row)) for row in islice(rows, _ROWS_PER_WRITE)]:
            count += len(lines)
            copy.write("\n".join(lines) + "\n")
    return count


def _field(value: object) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, str):
        # Hot: few values need it, and looking is cheaper than translating.
        return value.translate(_ESCAPES) if _needs_escape(value) else value
    return str(value)


def _needs_escape(value: str) -> bool:
    return "\\" in value or "\n" in value or "\t" in value or "\r" in value
