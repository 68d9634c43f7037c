"""Compare both sides with plain SQL, row by row: knows nothing of the product."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from replicator.demo.freshtrack import TABLES
from replicator.model.schema import parse_table_name

Connection = psycopg.Connection[Any]

_SESSION = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET row_security = off; SET statement_timeout = 0"

# The freshtrack case as it is: what the target must hold, written over the source's row `s`.
_MAPPED = "coalesce((SELECT m.target_id FROM user_map m WHERE m.source_id = s.user_id), s.user_id)"
_PROFILE = "(SELECT p.id FROM public.profiles p WHERE p.user_id = s.{})"
FRESHTRACK_SOURCE = {
    "profiles": {"user_id": _MAPPED},
    "user_roles": {"user_id": _MAPPED},
    "calibration_records": {"calibrated_by": _PROFILE.format("calibrated_by")},
    "alert_rules_history": {"changed_by": _PROFILE.format("changed_by")},
}


def assert_same_rows(
    source: Connection,
    target: Connection,
    table: str,
    *,
    target_table: str | None = None,
    columns: Sequence[str] = (),
    source_columns: Mapping[str, str] | None = None,
    target_columns: Mapping[str, str] | None = None,
    source_where: str = "true",
    target_where: str = "true",
) -> int:
    """Both tables hold the same rows, as text, counted; returns how many.

    Args:
        table: ``[schema.]name``, default schema public; on the target too unless `target_table`.
        columns: the target's columns to compare; default: all of its columns.
        source_columns: column → SQL over the source's row ``s`` that gives the expected value.
        target_columns: column → SQL over the target's row ``t``.
    """
    target_name = target_table or table
    names = list(columns) or _columns(target, target_name)
    expected = _rows(source, table, "s", [_expression("s", n, source_columns) for n in names], source_where)
    actual = _rows(target, target_name, "t", [_expression("t", n, target_columns) for n in names], target_where)
    if expected != actual:
        raise AssertionError(_difference(target_name, names, expected, actual))
    return expected.total()


def assert_same_freshtrack(
    source_dsn: str, target_dsn: str, map_file: Path | None = None, extras: Sequence[str] = ()
) -> dict[str, int]:
    """The 23 tables (and `extras`) are equal through the maps of the freshtrack case; returns rows per table."""
    with psycopg.connect(source_dsn) as source, psycopg.connect(target_dsn) as target:
        load_user_map(source, map_file)
        return {
            table: assert_same_rows(source, target, table, source_columns=FRESHTRACK_SOURCE.get(table))
            for table in (*TABLES, *extras)
        }


def load_user_map(source: Connection, map_file: Path | None) -> None:
    """Make the temporary table ``user_map`` (source_id, target_id) of a user-mapping.json, on this session."""
    mappings = json.loads(map_file.read_text())["mappings"] if map_file else []
    source.execute("CREATE TEMP TABLE user_map (source_id uuid PRIMARY KEY, target_id uuid)")
    with source.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO user_map VALUES (%s, %s)",
            [(entry["supabaseUserId"], entry["stackAuthUserId"]) for entry in mappings],
        )


def assert_valid_foreign_keys(conn: Connection) -> int:
    """Every foreign key of this database holds: loading with triggers off does not check them."""
    constraints = conn.execute(
        "SELECT conname, conrelid::regclass::text, confrelid::regclass::text,"
        " ARRAY(SELECT a.attname FROM unnest(conkey) WITH ORDINALITY k(n, i) JOIN pg_attribute a"
        "  ON a.attrelid = conrelid AND a.attnum = k.n ORDER BY i),"
        " ARRAY(SELECT a.attname FROM unnest(confkey) WITH ORDINALITY k(n, i) JOIN pg_attribute a"
        "  ON a.attrelid = confrelid AND a.attnum = k.n ORDER BY i)"
        " FROM pg_constraint WHERE contype = 'f' AND conparentid = 0"
    ).fetchall()
    for name, child, parent, child_columns, parent_columns in constraints:
        pairs = zip(child_columns, parent_columns, strict=True)
        join = " AND ".join(f'p."{b}" = c."{a}"' for a, b in pairs)
        present = " AND ".join(f'c."{a}" IS NOT NULL' for a in child_columns)
        dangling = conn.execute(
            f"SELECT count(*) FROM {child} c WHERE {present} AND NOT EXISTS (SELECT FROM {parent} p WHERE {join})"
        ).fetchone()
        assert dangling == (0,), f"{name}: {dangling} rows of {child} reference no row of {parent}"
    return len(constraints)


def _identifier(table: str) -> sql.Identifier:
    return sql.Identifier(*parse_table_name(table))


def _columns(conn: Connection, table: str) -> list[str]:
    rows = conn.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        " ORDER BY attnum",
        [_identifier(table).as_string(conn)],
    ).fetchall()
    return [name for (name,) in rows]


def _expression(alias: str, name: str, overrides: Mapping[str, str] | None) -> sql.Composable:
    override = (overrides or {}).get(name)
    return sql.SQL(override) if override else sql.Identifier(alias, name)


def _rows(conn: Connection, table: str, alias: str, expressions: Sequence[sql.Composable], where: str) -> Counter[str]:
    # ROW(…)::text goes through the types' output functions: it keeps blanks of bpchar, and tells NULL from ''.
    query = sql.SQL("SELECT ROW({})::text FROM {} {} WHERE {}").format(
        sql.SQL(", ").join(expressions), _identifier(table), sql.Identifier(alias), sql.SQL(where)
    )
    conn.execute(_SESSION)
    with conn.cursor() as cursor:
        return Counter(text for (text,) in cursor.stream(query, size=500))


def _difference(table: str, names: Sequence[str], expected: Counter[str], actual: Counter[str]) -> str:
    missing, extra = expected - actual, actual - expected
    lines = [
        f"{table}: {expected.total()} rows on the source, {actual.total()} on the target;"
        f" {missing.total()} missing, {extra.total()} unexpected",
        f"columns: {', '.join(names)}",
        *_samples("- ", missing),
        *_samples("+ ", extra),
    ]
    return "\n".join(lines)


def _samples(prefix: str, rows: Counter[str]) -> Iterator[str]:
    return (prefix + text[:400] for text in islice(sorted(rows), 5))
