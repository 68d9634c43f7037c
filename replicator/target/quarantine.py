"""``replicator.quarantine``: changes that the target refused, and those of the same rows that wait behind them.

The table holds values of rows, which nothing else of ours does: it lies in a schema that is closed to others, and is
written only where the settings ask for it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from psycopg import errors, sql

from replicator.model.change import Op
from replicator.model.lsn import Lsn
from replicator.model.row import NULL, UNCHANGED, Row
from replicator.model.schema import TableName, show_table
from replicator.postgres.connection import Connection, query
from replicator.postgres.placeholders import with_placeholders
from replicator.target.statements import TableStatements

_UNCHANGED = b"\xff\xff\xff\xfe"  # in the place of a length; no field is that long
_SHOWN_CHARACTERS = 200  # of each key value


@dataclass(frozen=True, slots=True)
class Held:
    """One change that waits. ``id`` 0: not stored yet.

    ``old`` has a field per column of ``key_columns``, ``new`` one per column of ``columns``; ``attnums`` and ``types``
    are theirs.
    """

    table: TableName  # of the target
    op: Op
    columns: tuple[str, ...]
    attnums: tuple[int, ...]
    types: tuple[str, ...]
    key_columns: tuple[str, ...]
    old: Row | None
    new: Row | None
    lsn: Lsn
    error: str | None  # None: it waits behind another
    id: int = 0

    @property
    def keys(self) -> set[Row]:
        """The keys of the rows that it concerns: two where it changes the key."""
        found = set() if self.old is None else {self.old}
        if self.new is not None:
            found.add(tuple(self.new[self.columns.index(name)] for name in self.key_columns))
        return found


@dataclass(frozen=True, slots=True)
class Listed:
    """One change as `quarantine list` shows it."""

    id: int
    table: str
    key: Mapping[str, str | None] | None  # by column, as text; None: it cannot be read
    op: str
    lsn: str
    error: str | None
    since: dt.datetime
    attempts: int
    retry_requested: bool
    waiting_behind: int | None  # the change before it that concerns the same row

    def to_json(self) -> dict[str, object]:
        """The entry of ``quarantine list --json``."""
        return {
            "id": self.id,
            "table": self.table,
            "key": None if self.key is None else dict(self.key),
            "op": self.op,
            "lsn": self.lsn,
            "error": self.error,
            "since": self.since.isoformat(),
            "attempts": self.attempts,
            "retry_requested": self.retry_requested,
            "waiting_behind": self.waiting_behind,
        }


def count(conn: Connection, slot: str) -> int:
    """How many changes wait."""
    [(found,)] = query(conn, "SELECT count(*) FROM replicator.quarantine WHERE slot = %s", slot)
    return int(found)


_SELECT = """
    SELECT table_schema, table_name, op, columns, attnums, types, key_columns, old_row, new_row,
           lsn::text, error, id
    FROM replicator.quarantine WHERE slot = %s
"""


def load(conn: Connection, slot: str, tables: Collection[TableName] | None = None, *, lock: bool = False) -> list[Held]:
    """All that waits, or what waits of these tables, in the order of the source; ``lock``: nobody may drop it now."""
    statement = sql.Composed([sql.SQL(_SELECT)])
    parameters: list[object] = [slot]
    if tables is not None:
        statement += sql.SQL(" AND (table_schema, table_name) IN (SELECT * FROM unnest(%s::text[], %s::text[]))")
        parameters += [[schema for schema, _ in tables], [name for _, name in tables]]
    statement += sql.SQL(" ORDER BY id FOR UPDATE" if lock else " ORDER BY id")
    return [_held(row) for row in query(conn, statement, *parameters)]


def _held(row: tuple[object, ...]) -> Held:
    schema, name, op, columns, attnums, types, key_columns, old, new, lsn, error, number = row
    assert isinstance(columns, list) and isinstance(attnums, list)
    assert isinstance(types, list) and isinstance(key_columns, list)
    assert isinstance(number, int) and (error is None or isinstance(error, str))
    return Held(
        (str(schema), str(name)), Op(op), tuple(columns), tuple(attnums), tuple(types), tuple(key_columns),
        _unpack(old), _unpack(new), Lsn.parse(str(lsn)), error, number,
    )  # fmt: skip


def store(
    conn: Connection, slot: str, changes: Sequence[Held], statements: Mapping[TableName, TableStatements]
) -> None:
    """Enter changes, in this order. ``statements`` encode the keys of their tables."""
    shown = _show_keys(conn, changes, statements)
    conn.cursor().executemany(
        """
        INSERT INTO replicator.quarantine (slot, table_schema, table_name, op, columns, attnums, types, key_columns,
                                           old_row, new_row, key, error, lsn, attempts)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::pg_lsn, %s)
        """,
        [
            (slot, *change.table, change.op.value, list(change.columns), list(change.attnums), list(change.types),
             list(change.key_columns), _pack(change.old), _pack(change.new), key, change.error, str(change.lsn),
             int(change.error is not None))
            for change, key in zip(changes, shown, strict=True)
        ],
    )  # fmt: skip


def rewrite(conn: Connection, changes: Iterable[Held]) -> None:
    """Replace the rows of these changes."""
    conn.cursor().executemany(
        "UPDATE replicator.quarantine SET old_row = %s, new_row = %s WHERE id = %s",
        [(_pack(change.old), _pack(change.new), change.id) for change in changes],
    )


def remove(conn: Connection, ids: Collection[int]) -> int:
    """Take changes out; how many there were."""
    return conn.execute("DELETE FROM replicator.quarantine WHERE id = ANY (%s)", (list(ids),)).rowcount


def remove_tables(conn: Connection, slot: str, tables: Collection[TableName], before: Lsn | None = None) -> int:
    """Take out what waits of these tables, or of it what was committed before an LSN; how many there were."""
    statement = """
        DELETE FROM replicator.quarantine WHERE slot = %s AND (%s::pg_lsn IS NULL OR lsn < %s::pg_lsn)
          AND (table_schema, table_name) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
    """
    lsn = None if before is None else str(before)
    names = [schema for schema, _ in tables], [name for _, name in tables]
    return conn.execute(statement, (slot, lsn, lsn, *names)).rowcount


def refuse_again(conn: Connection, reasons: Mapping[int, str | None]) -> None:
    """Note that a retry did not help: the reason by change; None: it waits behind another."""
    conn.cursor().executemany(
        """
        UPDATE replicator.quarantine
        SET retry_requested = false, error = %s, attempts = attempts + (%s::text IS NOT NULL)::integer WHERE id = %s
        """,
        [(reason, reason, number) for number, reason in reasons.items()],
    )


def request_retry(conn: Connection, slot: str, ids: Collection[int]) -> None:
    """Ask the running service, or the next one, to apply these changes."""
    conn.execute(
        "UPDATE replicator.quarantine SET retry_requested = true WHERE slot = %s AND id = ANY (%s)", (slot, list(ids))
    )


def requested(conn: Connection, slot: str) -> set[int]:
    """The changes that a retry is asked for."""
    rows = query(conn, "SELECT id FROM replicator.quarantine WHERE slot = %s AND retry_requested", slot)
    return {number for (number,) in rows}


def listed(conn: Connection, slot: str) -> list[Listed]:
    """All that waits, for people."""
    behind = _waiting_behind(load(conn, slot))
    rows = query(
        conn,
        """
        SELECT id, table_schema, table_name, key_columns, key, op, lsn::text, error, created_at, attempts,
               retry_requested
        FROM replicator.quarantine WHERE slot = %s ORDER BY id
        """,
        slot,
    )
    return [
        Listed(
            id=number,
            table=show_table((schema, name)),
            key=None if key is None else dict(zip(columns, key, strict=True)),
            op=op,
            lsn=lsn,
            error=error,
            since=since,
            attempts=attempts,
            retry_requested=requested_too,
            waiting_behind=behind.get(number),
        )
        for number, schema, name, columns, key, op, lsn, error, since, attempts, requested_too in rows
    ]


def group_by_row(keys: Sequence[tuple[TableName, set[Row]]]) -> list[list[int]]:
    """Places of changes that concern the same row, directly or through a change of its key; each group in order."""
    first = list(range(len(keys)))  # union-find: towards the first change of each group

    def find(at: int) -> int:
        while first[at] != at:
            first[at] = at = first[first[at]]
        return at

    last: dict[tuple[TableName, Row], int] = {}
    for at, (table, rows) in enumerate(keys):
        for row in rows:
            if (table, row) in last:
                one, other = find(last[table, row]), find(at)
                first[max(one, other)] = min(one, other)
            last[table, row] = at
    groups: dict[int, list[int]] = {}
    for at in range(len(keys)):
        groups.setdefault(find(at), []).append(at)
    return list(groups.values())


def _waiting_behind(changes: Iterable[Held]) -> dict[int, int]:
    last: dict[tuple[TableName, Row], int] = {}
    behind = {}
    for change in changes:
        found = [last[change.table, key] for key in change.keys if (change.table, key) in last]
        if found:
            behind[change.id] = max(found)
        last.update(((change.table, key), change.id) for key in change.keys)
    return behind


def _show_keys(
    conn: Connection, changes: Sequence[Held], statements: Mapping[TableName, TableStatements]
) -> list[list[str | None] | None]:
    """The key of each change as text, made by the server: it knows every type."""
    shown: list[list[str | None] | None] = [None] * len(changes)
    by_table: dict[tuple[TableName, tuple[str, ...]], list[int]] = {}
    for at, change in enumerate(changes):
        by_table.setdefault((change.table, change.key_columns), []).append(at)
    for (table, columns), places in by_table.items():
        rows = [_key_row(changes[at], statements[table]) for at in places]
        texts = _texts(conn, statements[table], columns, rows)
        for at, text in zip(places, texts, strict=False):
            shown[at] = text
    return shown


def _key_row(change: Held, statements: TableStatements) -> Row:
    """A row of the route that holds nothing but the key."""
    if change.old is not None:
        given = dict(zip(change.key_columns, change.old, strict=True))
    else:
        assert change.new is not None
        given = {name: change.new[change.columns.index(name)] for name in change.key_columns}
    return tuple(given.get(name, NULL) for name in statements.columns)


def _texts(
    conn: Connection, statements: TableStatements, columns: Sequence[str], rows: list[Row]
) -> list[list[str | None] | None]:
    """Empty if the server cannot read one of them: what it refuses may be the key itself."""
    values = sql.SQL(", ").join(
        sql.SQL("pg_catalog.left({}::text, {})").format(sql.Identifier("s", name), _SHOWN_CHARACTERS)
        for name in columns
    )
    statement = with_placeholders(
        sql.SQL("SELECT ARRAY[{}]::text[] FROM unnest(%b::{}[]) AS s").format(values, statements.table)
    )
    try:
        with conn.transaction():
            found = conn.execute(statement, (statements.rows(rows),)).fetchall()
    except (errors.DataError, errors.IntegrityError):
        return []
    return [key for (key,) in found]


def _pack(row: Row | None) -> bytes | None:
    """As one COPY row, with a length of its own for UNCHANGED."""
    if row is None:
        return None
    fields = [_UNCHANGED if value == UNCHANGED else value for value in row]
    return len(row).to_bytes(2, "big") + b"".join(fields)


def _unpack(data: object) -> Row | None:
    if data is None:
        return None
    assert isinstance(data, bytes)
    fields, at = [], 2
    for _ in range(int.from_bytes(data[:2], "big")):
        length = data[at : at + 4]
        if length == _UNCHANGED:
            fields.append(UNCHANGED)
            at += 4
        elif length == NULL:
            fields.append(NULL)
            at += 4
        else:
            end = at + 4 + int.from_bytes(length, "big")
            fields.append(data[at:end])
            at = end
    return tuple(fields)
