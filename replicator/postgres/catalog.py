"""Read tables, columns, types and keys from the system catalogs of either side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any, LiteralString, cast

from replicator.model.schema import Column, ForeignKey, Table, TableName, Type
from replicator.postgres.connection import Connection, query


@cache
def read_query(name: str) -> LiteralString:
    """The text of ``queries/NAME.sql``."""
    return cast(LiteralString, files("replicator.postgres").joinpath("queries", f"{name}.sql").read_text("utf-8"))  # type: ignore[redundant-cast]


def list_tables(conn: Connection, schema: str = "public") -> list[TableName]:
    """All ordinary and partitioned tables of a schema; partitions and tables of extensions left out."""
    rows = query(
        conn,
        """
        SELECT n.nspname, c.relname FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
          AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_depend d
            WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e')
        ORDER BY c.relname
        """,
        schema,
    )
    return [(schema_name, name) for schema_name, name in rows]


def list_references(conn: Connection, tables: Iterable[Table]) -> list[tuple[TableName, TableName]]:
    """Foreign keys into these tables from others: (referenced, referencing); a partition as its partitioned table."""
    rows = query(
        conn,
        """
        SELECT DISTINCT rn.nspname::text, r.relname::text, n.nspname::text, c.relname::text
        FROM pg_catalog.pg_constraint k
        JOIN pg_catalog.pg_class c ON c.oid = coalesce(pg_catalog.pg_partition_root(k.conrelid), k.conrelid)
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_class r ON r.oid = k.confrelid
        JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
        WHERE k.contype = 'f' AND k.conparentid = 0
          AND k.confrelid = ANY (%s::oid[]) AND c.oid <> ALL (%s::oid[])
        ORDER BY 1, 2, 3, 4
        """,
        *[[table.oid for table in tables]] * 2,
    )
    return [((ref_schema, ref_name), (schema, name)) for ref_schema, ref_name, schema, name in rows]


def load_tables(conn: Connection, names: Iterable[TableName]) -> dict[TableName, Table]:
    """The tables of these names that exist, complete with columns, types and foreign keys."""
    wanted = sorted(set(names))
    rows = query(conn, read_query("tables"), [schema for schema, _ in wanted], [name for _, name in wanted])
    oids = [row[2] for row in rows]
    columns = _load_columns(conn, oids)
    foreign_keys = _load_foreign_keys(conn, oids)
    tables = {}
    for schema, name, oid, kind, type_oid, array_oid, identity, rls, owner, *more in rows:
        key, identity_key, count, size, dropped, filenode, version, leaf_oids, leaf_names = more
        tables[schema, name] = Table(
            name=(schema, name),
            oid=oid,
            kind=kind,
            type_oid=type_oid,
            type_array_oid=array_oid,
            columns=tuple(columns[oid]),
            primary_key=tuple(key),
            replica_identity=identity,
            identity_index=tuple(identity_key),
            foreign_keys=tuple(foreign_keys[oid]),
            rows_estimate=count,
            bytes_estimate=size,
            row_security=rls,
            owner=owner,
            dropped=tuple(dropped),
            filenode=filenode,
            version=version,
            leaves=tuple(zip(leaf_oids, leaf_names, strict=True)),
        )
    return tables


def _load_columns(conn: Connection, oids: list[int]) -> dict[int, list[Column]]:
    rows = query(conn, read_query("columns"), oids)
    types = load_types(conn, {row[2] for row in rows})
    columns: dict[int, list[Column]] = defaultdict(list)
    for table_oid, name, type_oid, typmod, type_sql, not_null, default, generated, identity, attnum, missing in rows:
        columns[table_oid].append(
            Column(
                name=name,
                type=types[type_oid],
                typmod=typmod,
                type_sql=type_sql,
                not_null=not_null,
                default=default,
                generated=generated,
                identity=identity,
                attnum=attnum,
                missing=missing,
            )
        )
    return columns


def load_types(conn: Connection, oids: Iterable[int]) -> dict[int, Type]:
    """Types by OID, with their elements, bases and attributes."""
    rows = {row[0]: row for row in query(conn, read_query("types"), sorted(oids))}
    types: dict[int, Type] = {}
    for oid in rows:
        _build_type(oid, rows, types)
    return types


def _build_type(oid: int, rows: dict[int, tuple[Any, ...]], types: dict[int, Type]) -> Type:
    if oid not in types:
        _, name, kind, category, has_binary, array_oid, element, base, *made_of, equality_schema = rows[oid]
        attributes, attribute_oids, labels = made_of
        types[oid] = Type(
            oid=oid,
            name=name,
            kind=kind,
            category=category,
            has_binary=has_binary,
            array_oid=array_oid,
            element=_build_type(element, rows, types) if element else None,
            base=_build_type(base, rows, types) if base else None,
            attributes=tuple(
                (attribute, _build_type(attribute_oid, rows, types))
                for attribute, attribute_oid in zip(attributes, attribute_oids, strict=True)
            ),
            labels=tuple(labels),
            equality_schema=equality_schema,
        )
    return types[oid]


def _load_foreign_keys(conn: Connection, oids: list[int]) -> dict[int, list[ForeignKey]]:
    keys: dict[int, list[ForeignKey]] = defaultdict(list)
    for oid, name, columns, schema, table, ref_columns, *acts in query(conn, read_query("foreign_keys"), oids):
        keys[oid].append(ForeignKey(name, tuple(columns), (schema, table), tuple(ref_columns), *acts))
    return keys


def server_identity(conn: Connection) -> tuple[str, str]:
    """(system identifier, database name): which cluster and database this session is on."""
    [(system_identifier, database)] = query(
        conn,
        "SELECT (pg_catalog.pg_control_system()).system_identifier::text, pg_catalog.current_database()::text",
    )
    return system_identifier, database
