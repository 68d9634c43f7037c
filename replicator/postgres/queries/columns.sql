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
    a.attidentity::text
FROM pg_catalog.pg_attribute a
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY (%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
