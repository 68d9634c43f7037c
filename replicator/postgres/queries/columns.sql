-- Live columns of the given tables, in attnum order.
SELECT
    a.attrelid::bigint,
    a.attname::text,
    a.atttypid::bigint,
    a.atttypmod,
    pg_catalog.format_type(a.atttypid, a.atttypmod),
    a.attnotnull,
    pg_catalog.pg_get_expr(d.adbin, d.adrelid),
    a.attgenerated <> '',
    a.attidentity::text,
    a.attnum::int,
    CASE
        WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1]
        WHEN c.relkind = 'p' THEN ( -- a partitioned table has no rows of its own
            SELECT (l.attmissingval::text::text[])[1] FROM pg_catalog.pg_partition_tree(c.oid) AS t
            JOIN pg_catalog.pg_attribute l ON l.attrelid = t.relid AND l.attname = a.attname AND l.atthasmissing
            LIMIT 1
        )
    END
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY (%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
