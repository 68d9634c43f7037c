"""Primary keys and unique constraints that may be dropped while an empty table is filled, and how they come back."""

from __future__ import annotations

from typing import Any

from replicator.postgres.connection import Connection

# Left alone (``bound``): replica identities; exclusion constraints; what foreign keys, views or functions rest on, all
# of which pg_depend knows; and what pg_get_constraintdef does not tell: storage parameters, tablespace, CLUSTER,
# comments. Of a partitioned table all of that holds for the share of each partition, which must have the name that
# PostgreSQL will make up again; and where a partition has a like key of its own, that one could be taken for its share.
# ONLY, as pg_dump has it: children by inheritance may do without NOT NULL. A NOT NULL that is NO INHERIT suffers no new
# primary key. Step by step, lest the planner looks at the keys of all tables first.
_DEFERRABLE = """
WITH key AS MATERIALIZED (
    SELECT c.oid, c.conname, c.conindid, c.conkey, c.conrelid, t.relname, t.relkind, t.relowner,
           n.oid AS schema, n.nspname
    FROM (SELECT %(table)s::regclass UNION SELECT relid FROM pg_catalog.pg_partition_tree(%(table)s)) AS w (oid)
    JOIN pg_catalog.pg_constraint c ON c.conrelid = w.oid AND c.contype IN ('p', 'u') AND c.conparentid = 0
    JOIN pg_catalog.pg_class t ON t.oid = c.conrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
), share AS MATERIALIZED (
    SELECT key.oid AS key, s.oid FROM key
    CROSS JOIN LATERAL (SELECT key.conindid UNION SELECT relid FROM pg_catalog.pg_partition_tree(key.conindid)) s (oid)
), bound AS MATERIALIZED (
    SELECT share.key FROM share
    JOIN pg_catalog.pg_index x ON x.indexrelid = share.oid
    JOIN pg_catalog.pg_class i ON i.oid = share.oid
    JOIN pg_catalog.pg_class t ON t.oid = x.indrelid
    JOIN pg_catalog.pg_constraint c ON c.conrelid = t.oid AND c.conindid = share.oid AND c.contype IN ('p', 'u')
    WHERE NOT x.indisvalid OR x.indisexclusion OR x.indisreplident OR x.indisclustered
       OR i.reltablespace <> 0 OR i.reloptions IS NOT NULL
       OR i.relispartition AND c.conname <> pg_catalog.concat(t.relname, CASE c.contype
            WHEN 'p' THEN '_pkey'
            ELSE (SELECT '_' || pg_catalog.string_agg(a.attname, '_' ORDER BY a.attnum) || '_key'
                  FROM pg_catalog.pg_attribute a WHERE a.attrelid = share.oid) END)
       OR EXISTS (SELECT FROM pg_catalog.pg_description d
                  WHERE d.classoid = 'pg_catalog.pg_class'::regclass AND d.objoid = share.oid
                     OR d.classoid = 'pg_catalog.pg_constraint'::regclass AND d.objoid = c.oid)
       OR EXISTS (SELECT FROM pg_catalog.pg_depend d
                  WHERE (d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = share.oid
                         OR d.refclassid = 'pg_catalog.pg_constraint'::regclass AND d.refobjid = c.oid)
                    AND d.deptype NOT IN ('i', 'P', 'S'))
       OR EXISTS (SELECT FROM pg_catalog.pg_depend d
                  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = share.oid AND d.deptype = 'x')
)
SELECT key.nspname::text, key.conname::text, key.nspname::text, key.relname::text,
       pg_catalog.format('ALTER TABLE %%s%%I.%%I ADD CONSTRAINT %%I %%s',
                         CASE key.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END,
                         key.nspname, key.relname, key.conname, pg_catalog.pg_get_constraintdef(key.oid)),
       pg_catalog.pg_has_role(key.relowner, 'USAGE') AND pg_catalog.has_schema_privilege(key.schema, 'CREATE')
FROM key
WHERE key.oid NOT IN (SELECT bound.key FROM bound)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint c WHERE c.conrelid = key.conrelid
                    AND c.contype = 'n' AND c.connoinherit AND c.conkey[1] = ANY (key.conkey))
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_partition_tree(key.conrelid) p
                  JOIN pg_catalog.pg_constraint c ON c.conrelid = p.relid
                  WHERE p.relid <> key.conrelid AND c.contype IN ('p', 'u') AND c.conparentid = 0
                    AND pg_catalog.cardinality(c.conkey) = pg_catalog.cardinality(key.conkey))
ORDER BY 1, 2
"""


def find_deferrable(conn: Connection, table: str) -> list[tuple[Any, ...]]:
    """Of a table and its partitions: schema and name, schema and name of the table it is on, the statement that makes
    it again, and whether this role may do that.
    """
    return conn.execute(_DEFERRABLE, {"table": table}).fetchall()
