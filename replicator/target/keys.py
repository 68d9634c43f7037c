"""Primary keys and unique constraints that may be dropped while an empty table is filled, and how they come back."""

from __future__ import annotations

from typing import Any

from replicator.postgres.connection import Connection, query

# Left alone: replica identities; exclusion constraints; what foreign keys, views or functions rest on, all of which
# pg_depend knows; and what pg_get_constraintdef does not tell: storage parameters, tablespace, CLUSTER, comments.
# Of a partitioned table all of that holds for the share of each partition, which must have the name that
# PostgreSQL will make up again; and where a partition has a like key of its own, that one could be taken for its share.
# ONLY, as pg_dump has it: children by inheritance may do without NOT NULL. One that is NO INHERIT does not suffer
# a primary key, once it is gone.
_DEFERRABLE = """
SELECT n.nspname::text, c.conname::text, n.nspname::text, t.relname::text,
       pg_catalog.format('ALTER TABLE %%s%%I.%%I ADD CONSTRAINT %%I %%s',
                         CASE t.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END,
                         n.nspname, t.relname, c.conname, pg_catalog.pg_get_constraintdef(c.oid)),
       pg_catalog.pg_has_role(t.relowner, 'USAGE') AND pg_catalog.has_schema_privilege(n.oid, 'CREATE')
FROM pg_catalog.pg_constraint c
JOIN pg_catalog.pg_class t ON t.oid = c.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
WHERE (t.oid = %s::regclass OR t.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(%s::regclass)))
  AND c.contype IN ('p', 'u') AND c.conparentid = 0
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint l
                  WHERE l.conrelid = t.oid AND l.contype = 'n' AND l.connoinherit AND l.conkey[1] = ANY (c.conkey))
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_partition_tree(t.oid) p
                  JOIN pg_catalog.pg_constraint o ON o.conrelid = p.relid
                  WHERE p.relid <> t.oid AND o.contype IN ('p', 'u') AND o.conparentid = 0
                    AND pg_catalog.cardinality(o.conkey) = pg_catalog.cardinality(c.conkey))
  AND NOT EXISTS (
    SELECT FROM (SELECT c.conindid UNION SELECT relid FROM pg_catalog.pg_partition_tree(c.conindid)) AS share (oid)
    JOIN pg_catalog.pg_index sx ON sx.indexrelid = share.oid
    JOIN pg_catalog.pg_class si ON si.oid = share.oid
    JOIN pg_catalog.pg_class st ON st.oid = sx.indrelid
    JOIN pg_catalog.pg_constraint sc ON sc.conindid = share.oid AND sc.contype IN ('p', 'u')
    WHERE NOT sx.indisvalid OR sx.indisexclusion OR sx.indisreplident OR sx.indisclustered
       OR si.reltablespace <> 0 OR si.reloptions IS NOT NULL
       OR si.relispartition AND sc.conname <> pg_catalog.concat(st.relname, CASE sc.contype
            WHEN 'p' THEN '_pkey'
            ELSE (SELECT '_' || pg_catalog.string_agg(a.attname, '_' ORDER BY a.attnum) || '_key'
                  FROM pg_catalog.pg_attribute a WHERE a.attrelid = share.oid) END)
       OR EXISTS (SELECT FROM pg_catalog.pg_description d
                  WHERE d.classoid = 'pg_catalog.pg_class'::regclass AND d.objoid = share.oid
                     OR d.classoid = 'pg_catalog.pg_constraint'::regclass AND d.objoid = sc.oid)
       OR EXISTS (SELECT FROM pg_catalog.pg_depend d
                  WHERE (d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = share.oid
                         OR d.refclassid = 'pg_catalog.pg_constraint'::regclass AND d.refobjid = sc.oid)
                    AND d.deptype NOT IN ('i', 'P', 'S'))
       OR EXISTS (SELECT FROM pg_catalog.pg_depend d
                  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = share.oid AND d.deptype = 'x'))
ORDER BY 1, 2
"""


def find_deferrable(conn: Connection, table: str) -> list[tuple[Any, ...]]:
    """Of a table and its partitions: schema and name, schema and name of the table it is on, the statement that makes
    it again, and whether this role may do that.
    """
    return query(conn, _DEFERRABLE, table, table)
