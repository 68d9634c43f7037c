"""Random transactions over random tables. Statements may fail on the source: then they are left out, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.properties.schemas import Column, Schema, Table, identifier, identifiers
from tests.properties.values import INT, values


@dataclass(frozen=True)
class Transaction:
    statements: tuple[str, ...]
    commits: bool = True


@st.composite
def transactions(draw: st.DrawFn, schema: Schema) -> Transaction:
    """Statements, in savepoints or not; one in eight is rolled back."""
    statements = ["SET CONSTRAINTS ALL DEFERRED"] if draw(st.integers(0, 5)) == 5 else []
    open_savepoints = 0
    for _ in range(draw(st.integers(0, 6))):
        turn = draw(st.integers(0, 19))
        if turn >= 17:
            open_savepoints += 1
            statements.append(f"SAVEPOINT s{open_savepoints}")
        elif turn >= 14 and open_savepoints:
            back = draw(st.sampled_from(["RELEASE", "ROLLBACK TO"]))
            statements.append(f"{back} SAVEPOINT s{open_savepoints}")
            open_savepoints -= back == "RELEASE"
        statements += draw(changes(schema))
    return Transaction(tuple(statements), draw(st.integers(0, 7)) < 7)


@st.composite
def changes(draw: st.DrawFn, schema: Schema) -> list[str]:
    """One change, of one statement or a few that belong together."""
    table = draw(st.sampled_from(schema.tables))
    weights: dict[Callable[[st.DrawFn, Table], list[str]], int] = {
        _insert: 6, _update: 6, _delete: 3, _rekey: 3, _again: 2, _bulk: 1, _swap: 2, _shift: 1, _everything: 1,
    }  # fmt: skip
    ways = [way for way, weight in weights.items() for _ in range(weight)]
    if draw(st.integers(0, 29)) == 29:
        return [_truncate(draw, schema)]
    return draw(st.sampled_from(ways))(draw, table)


# ── parts of statements ────────────────────────────────────────────────────────────────────────────────


def _value(draw: st.DrawFn, column: Column, *, key: bool = False) -> str:
    if column.identity and (column.identity == "a" or draw(st.booleans())):
        return "DEFAULT"
    return draw(values(column.kind, nullable=column.nullable and not key, big=not key))


def _row(draw: st.DrawFn, table: Table) -> str:
    """Which row: the one of a key, or the one at some place."""
    if table.key and draw(st.booleans()):
        return _same_key(table, _key(draw, table))
    offset = draw(st.integers(0, 4))
    where = f"SELECT tableoid, ctid FROM {table.id} ORDER BY 1, 2 OFFSET {offset} LIMIT 1"
    return f"(tableoid, ctid) = ({where})"


def _key(draw: st.DrawFn, table: Table) -> list[str]:
    return [draw(values(table.by_name[name].kind, nullable=False)) for name in table.key]


def _same_key(table: Table, key: list[str]) -> str:
    return " AND ".join(f"{identifier(name)} = {value}" for name, value in zip(table.key, key, strict=True))


def _insert_of(table: Table, rows: list[list[str]]) -> str:
    names = identifiers([column.name for column in table.filled])
    lines = ", ".join(f"({', '.join(row)})" for row in rows)
    return f"INSERT INTO {table.id} ({names}) OVERRIDING SYSTEM VALUE VALUES {lines}"


# ── changes ────────────────────────────────────────────────────────────────────────────────────────────


def _insert(draw: st.DrawFn, table: Table) -> list[str]:
    rows = [
        [_value(draw, column, key=column.name in table.key) for column in table.filled]
        for _ in range(draw(st.integers(1, 3)))
    ]
    return [_insert_of(table, rows)]


def _update(draw: st.DrawFn, table: Table) -> list[str]:
    columns = [c for c in table.filled if c.name not in table.key and c.identity != "a"]
    if not columns:
        return _delete(draw, table)
    chosen = draw(st.lists(st.sampled_from(columns), min_size=1, max_size=3, unique_by=lambda c: c.name))
    parts = ", ".join(f"{column.id} = {_value(draw, column)}" for column in chosen)
    return [f"UPDATE {table.id} SET {parts} WHERE {_row(draw, table)}"]


def _everything(draw: st.DrawFn, table: Table) -> list[str]:
    """Every row at once."""
    if draw(st.integers(0, 3)) == 3:
        return [f"DELETE FROM {table.id}"]
    [update] = _update(draw, table)
    return [update.partition(" WHERE ")[0]]


def _delete(draw: st.DrawFn, table: Table) -> list[str]:
    return [f"DELETE FROM {table.id} WHERE {_row(draw, table)}"]


def _rekey(draw: st.DrawFn, table: Table) -> list[str]:
    """A new key, with other columns or without."""
    fixed = [name for name in table.key if table.by_name[name].identity == "a"]
    if not table.key or fixed:
        return _update(draw, table)
    parts = [f"{identifier(name)} = {value}" for name, value in zip(table.key, _key(draw, table), strict=True)]
    more = [c for c in table.filled if c.name not in table.key and c.identity != "a"]
    if more and draw(st.booleans()):
        column = draw(st.sampled_from(more))
        parts.append(f"{column.id} = {_value(draw, column)}")
    return [f"UPDATE {table.id} SET {', '.join(parts)} WHERE {_row(draw, table)}"]


def _again(draw: st.DrawFn, table: Table) -> list[str]:
    """Delete a key and insert it again, perhaps a second time."""
    if not table.key:
        return _insert(draw, table) * 2
    key = dict(zip(table.key, _key(draw, table), strict=True))
    statements = []
    for _ in range(draw(st.integers(1, 2))):
        row = [key.get(column.name) or _value(draw, column) for column in table.filled]
        statements += [f"DELETE FROM {table.id} WHERE {_same_key(table, list(key.values()))}", _insert_of(table, [row])]
    return statements


def _bulk(draw: st.DrawFn, table: Table) -> list[str]:
    """Enough rows for a COPY."""
    numbered = {name for name in (*table.key, table.unique) if name and table.by_name[name].kind is INT}
    if table.key and not numbered & set(table.key):
        return _insert(draw, table)
    start = draw(st.sampled_from([100, 1000]))
    values_ = ["i" if c.name in numbered else _value(draw, c).replace("DEFAULT", "i") for c in table.filled]
    names = identifiers([column.name for column in table.filled])
    rows = draw(st.sampled_from([110, 250]))
    return [
        f"INSERT INTO {table.id} ({names}) OVERRIDING SYSTEM VALUE"
        f" SELECT {', '.join(values_)} FROM generate_series({start}, {start + rows - 1}) i"
    ]


def _swap(draw: st.DrawFn, table: Table) -> list[str]:
    """Two or three rows hand on their unique values."""
    name = table.unique
    if not name:
        name = next((n for n in table.key if table.by_name[n].kind is INT and table.by_name[n].identity != "a"), "")
    if not name:
        return _rekey(draw, table)
    column, size = identifier(name), draw(st.integers(2, 3))
    taken = draw(st.permutations(["1", "2", "3", "4"]))[:size]
    if table.unique_timing and name == table.unique:
        cases = " ".join(f"WHEN {a} THEN {b}" for a, b in zip(taken, [*taken[1:], taken[0]], strict=True))
        return [f"UPDATE {table.id} SET {column} = CASE {column} {cases} END WHERE {column} IN ({', '.join(taken)})"]
    steps = zip([taken[-1], *reversed(taken[:-1])], ["-77", *reversed(taken[1:])], strict=True)
    moves = [*steps, ("-77", taken[0])]
    return [f"UPDATE {table.id} SET {column} = {new} WHERE {column} = {old}" for old, new in moves]


def _shift(draw: st.DrawFn, table: Table) -> list[str]:
    """All keys move on, by so much that they do not meet, or by so little that they may."""
    name = next((n for n in table.key if table.by_name[n].kind is INT and table.by_name[n].identity != "a"), "")
    if not name:
        return _everything(draw, table)
    by = draw(st.sampled_from(["5000", "1", "-1"]))
    return [f"UPDATE {table.id} SET {identifier(name)} = {identifier(name)} + {by} WHERE {identifier(name)} < 100000"]


def _truncate(draw: st.DrawFn, schema: Schema) -> str:
    tables = draw(st.lists(st.sampled_from(schema.tables), min_size=1, unique=True))
    identity = draw(st.sampled_from(["", " RESTART IDENTITY"]))
    cascade = draw(st.sampled_from(["", " CASCADE"]))
    return f"TRUNCATE {', '.join(table.id for table in tables)}{identity}{cascade}"
