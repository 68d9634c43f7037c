-- One row per sequence and column that draws from it, as its owner (identity, serial) or in its default;
-- and one row with NULLs for a sequence of the given schemas that no column uses and no column or extension owns.
WITH used AS (
    SELECT d.objid AS sequence, d.refobjid AS relation, d.refobjsubid AS attnum, true AS owned
    FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'S'
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.refobjsubid > 0
      AND d.deptype IN ('a', 'i')
    UNION ALL
    SELECT c.oid, a.adrelid, a.adnum, false
    FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_attrdef a ON a.oid = d.objid
    JOIN pg_catalog.pg_class c ON c.oid = d.refobjid AND c.relkind = 'S'
    WHERE d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
)
SELECT
    c.oid::bigint,
    n.nspname,
    c.relname,
    s.seqincrement,
    s.seqmin,
    s.seqmax,
    u.relation::bigint,
    a.attname,
    coalesce(u.owned, false)
FROM pg_catalog.pg_sequence s
JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN used u ON u.sequence = c.oid
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = u.relation AND a.attnum = u.attnum
WHERE u.relation = ANY (%s)
   OR u.relation IS NULL
      AND n.nspname = ANY (%s)
      AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend e
        WHERE e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND e.objid = c.oid AND e.deptype = 'e')
ORDER BY coalesce(u.owned, false) DESC, n.nspname, c.relname, a.attname
