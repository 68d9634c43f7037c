"""Indexes and keys: dropped while an empty table is filled, back when its rows are in.

The definition is saved in ``replicator.deferred_index`` in the transaction that drops the index, and marked rebuilt in
the transaction that creates it again: whatever happens in between, no index is forgotten. A primary key or unique
constraint is an index here whose definition is the ALTER TABLE that adds it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import LiteralString, cast

from psycopg import errors, sql

from replicator.errors import RowRejected, StateError
from replicator.failpoints import failpoint
from replicator.model.schema import Table, TableName, show_table
from replicator.postgres.connection import Connection, query, table_identifier, translated
from replicator.target import keys

_BUILD_MEMORY_MB = 256


@dataclass(frozen=True, slots=True)
class DeferredIndex:
    """One row of ``replicator.deferred_index``. ``table`` is what it is on: a table of the plan or one partition."""

    schema: str
    name: str
    table: TableName
    definition: str

    def __str__(self) -> str:
        return show_table((self.schema, self.name))

    @property
    def is_key(self) -> bool:
        """Whether it belongs to a constraint, which keeps everybody else off its table while it is built."""
        return self.definition.startswith("ALTER TABLE ")


# Left alone: what a constraint or a foreign key rests on, replica identities, invalid indexes; children of a
# partitioned index (they go and come with it); what pg_get_indexdef does not tell (tablespace, CLUSTER, comment,
# statistics targets, other objects that depend on it); and expressions that call functions which are not built in:
# they may need a search_path that we do not have.
_DEFERRABLE = """
SELECT n.nspname::text, i.relname::text, tn.nspname::text, t.relname::text,
       pg_catalog.pg_get_indexdef(i.oid),
       pg_catalog.format('CREATE %%sINDEX %%I ON ', CASE WHEN x.indisunique THEN 'UNIQUE ' ELSE '' END, i.relname),
       pg_catalog.pg_has_role(t.relowner, 'USAGE') AND pg_catalog.has_schema_privilege(n.oid, 'CREATE')
FROM pg_catalog.pg_index x
JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = i.relnamespace
JOIN pg_catalog.pg_class t ON t.oid = x.indrelid
JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
WHERE (t.oid = %(table)s::regclass
       OR t.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(%(table)s::regclass)))
  AND NOT i.relispartition AND x.indisvalid AND NOT x.indisprimary AND NOT x.indisexclusion
  AND NOT x.indisreplident AND NOT x.indisclustered AND i.reltablespace = 0
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint c WHERE c.conindid = i.oid)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_description d
                  WHERE d.classoid = 'pg_catalog.pg_class'::regclass AND d.objoid = i.oid)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.oid AND a.attstattarget >= 0)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                  WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = i.oid
                    AND d.deptype NOT IN ('P', 'S'))
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.oid
                    AND (d.refclassid = 'pg_catalog.pg_proc'::regclass AND d.refobjid >= 16384 OR d.deptype = 'x'))
ORDER BY 1, 2
"""


def defer(
    conn: Connection, table: TableName, slot: str | None = None, *, with_keys: bool = False
) -> tuple[list[DeferredIndex], list[str]]:
    """Save and drop the indexes of an empty table and of its partitions.

    Args:
        conn: inside a transaction.
        slot: whose copy this is.
        with_keys: primary keys and unique constraints too, as far as nothing rests on them. Only where no trigger may
            fire: its ON CONFLICT would miss them.

    Returns:
        What was dropped, and the names of those that had to stay since this role may not create them again.
    """
    name = table_identifier(table).as_string(conn)
    found = [
        (DeferredIndex(schema, index, (table_schema, on), _recursive(definition, head)), is_ours)
        for schema, index, table_schema, on, definition, head, is_ours in conn.execute(_DEFERRABLE, {"table": name})
    ]
    if with_keys:
        found += [
            (DeferredIndex(schema, key, (table_schema, on), definition), is_ours)
            for schema, key, table_schema, on, definition, is_ours in keys.find_deferrable(conn, name)
        ]
    kept = [index.name for index, is_ours in found if not is_ours]
    dropped = [index for index, is_ours in found if is_ours]
    if not dropped:
        return [], kept
    try:
        with conn.transaction():
            _save(conn, dropped, slot)
            for index in dropped:
                _drop(conn, index)
    except errors.DependentObjectsStillExist:
        # A foreign key to one partition rests on a child of a partitioned index.
        return [], kept + [index.name for index in dropped]
    return dropped, kept


def _drop(conn: Connection, index: DeferredIndex) -> None:
    name = sql.Identifier(index.name)
    if index.is_key:
        conn.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(table_identifier(index.table), name))
    else:
        conn.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(index.schema, index.name)))


def _recursive(definition: str, head: str) -> str:
    """``CREATE INDEX i ON ONLY t …`` of a partitioned table without its ONLY, so that partitions get theirs back."""
    if not definition.startswith(head):
        raise StateError(f"an index definition reads otherwise than expected: {definition}",
                         hint="set defer_indexes = false in [snapshot]")  # fmt: skip
    return head + definition[len(head) :].removeprefix("ONLY ")


def _save(conn: Connection, indexes: Iterable[DeferredIndex], slot: str | None) -> None:
    conn.cursor().executemany(
        """
        INSERT INTO replicator.deferred_index
            (index_schema, index_name, table_schema, table_name, definition, slot, state)
        VALUES (%s, %s, %s, %s, %s, %s, 'dropped')
        ON CONFLICT (index_schema, index_name) DO UPDATE
        SET table_schema = excluded.table_schema, table_name = excluded.table_name,
            definition = excluded.definition, slot = excluded.slot, state = 'dropped'
        """,
        [(index.schema, index.name, *index.table, index.definition, slot) for index in indexes],
    )


def pending(
    conn: Connection, tables: Collection[TableName] | None = None, *, slot: str | None = None
) -> list[DeferredIndex]:
    """Indexes that are dropped and not yet rebuilt: all, or those of some tables and their partitions.

    With ``slot`` not those that another slot's copy has dropped.

    Those of partitions come first. A name that PostgreSQL makes up for a child index must not take theirs.
    """
    rows = query(
        conn,
        """
        SELECT d.index_schema, d.index_name, d.table_schema, d.table_name, d.definition
        FROM replicator.deferred_index d
        LEFT JOIN pg_catalog.pg_class t
               ON t.oid = pg_catalog.to_regclass(pg_catalog.format('%%I.%%I', d.table_schema, d.table_name))
        WHERE d.state = 'dropped' AND (%s::text IS NULL OR coalesce(d.slot, %s) = %s)
          AND (%s::text[] IS NULL OR t.oid IN (
                   SELECT coalesce(p.relid, r.oid)
                   FROM (SELECT pg_catalog.to_regclass(w) AS oid FROM unnest(%s::text[]) AS w) r
                   LEFT JOIN LATERAL pg_catalog.pg_partition_tree(r.oid) p ON true))
        ORDER BY coalesce(t.relispartition, false) DESC, t.relkind = 'p', 1, 2
        """,
        *[slot] * 3,
        *[None if tables is None else [table_identifier(table).as_string(conn) for table in tables]] * 2,
    )
    return [DeferredIndex(schema, name, (on_schema, on), text) for schema, name, on_schema, on, text in rows]


def rebuild(conn: Connection, index: DeferredIndex) -> None:
    """Create one index again, unless somebody else has, and mark it rebuilt, in one transaction.

    Raises:
        RowRejected: rows violate a unique index.
    """
    with translated("target"):
        _raise_memory(conn)
        try:
            failpoint("before_index_rebuild", conn)
            with conn.transaction():
                conn.execute("SET LOCAL default_tablespace = ''")
                # A task may be given out twice, and side by side: whoever comes second finds the index.
                conn.execute(
                    "SELECT FROM replicator.deferred_index WHERE index_schema = %s AND index_name = %s FOR UPDATE",
                    (index.schema, index.name),
                )
                if not _exists(conn, index):
                    conn.execute(cast(LiteralString, index.definition))  # type: ignore[redundant-cast]
                conn.execute(
                    "UPDATE replicator.deferred_index SET state = 'rebuilt'"
                    " WHERE index_schema = %s AND index_name = %s",
                    (index.schema, index.name),
                )
            failpoint("after_index_rebuild", conn)
        except errors.IntegrityError as exc:
            kind = "constraint" if index.is_key else "unique index"
            raise RowRejected(
                f"{show_table(index.table)}: its rows violate the {kind} {index.name}, which cannot be rebuilt",
                hint="remove the duplicates on the source and copy the table again, or remove the entry from "
                "replicator.deferred_index on the target to do without",
            ) from exc


def rebuild_missing(
    conn: Connection, tables: Collection[TableName] | None = None, *, slot: str | None = None
) -> list[DeferredIndex]:
    """Rebuild every index that is still missing, one after another; those that were. ``slot``: as of `pending`."""
    missing = pending(conn, tables, slot=slot)
    for index in missing:
        rebuild(conn, index)
    return missing


def analyze(conn: Connection, tables: Iterable[TableName]) -> None:
    """Give the planner statistics of freshly copied rows; a table of another role's is skipped with a warning.

    In one transaction: a commit for each small table would take longer than reading it.
    """
    names = sql.SQL(", ").join(table_identifier(table) for table in tables)
    with translated("target"), conn.transaction():
        conn.execute(sql.SQL("ANALYZE {}").format(names))


def never_analyzed(conn: Connection, tables: Iterable[Table]) -> list[Table]:
    """Those of these tables that have no statistics."""
    by_oid = {table.oid: table for table in tables}
    rows = query(
        conn, "SELECT oid::bigint FROM pg_catalog.pg_class WHERE oid = ANY (%s::oid[]) AND reltuples < 0", list(by_oid)
    )
    return [by_oid[oid] for (oid,) in rows]


def _exists(conn: Connection, index: DeferredIndex) -> bool:
    """Whether its table has an index of this name, on its own account and not as a share of a partitioned one."""
    [(found,)] = query(
        conn,
        """
        SELECT EXISTS (
            SELECT FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
            WHERE x.indrelid = pg_catalog.to_regclass(%s) AND i.oid = pg_catalog.to_regclass(%s)
              AND NOT i.relispartition)
        """,
        table_identifier(index.table).as_string(conn),
        sql.Identifier(index.schema, index.name).as_string(conn),
    )
    return bool(found)


def _raise_memory(conn: Connection) -> None:
    """Never below what the server's owner set."""
    conn.execute(
        "SELECT pg_catalog.set_config('maintenance_work_mem', %s, false) FROM pg_catalog.pg_settings"
        " WHERE name = 'maintenance_work_mem' AND setting::bigint < %s",
        (f"{_BUILD_MEMORY_MB}MB", _BUILD_MEMORY_MB << 10),
    )
