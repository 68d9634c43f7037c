-- The given types and all that they are made of: elements, domain bases, composite attributes.
WITH RECURSIVE parts (oid) AS (
    SELECT unnest(%s::oid[])
    UNION
    SELECT part.oid
    FROM parts p
    JOIN pg_catalog.pg_type t ON t.oid = p.oid
    CROSS JOIN LATERAL (
        SELECT t.typelem WHERE t.typcategory = 'A' AND t.typelem <> 0
        UNION ALL
        SELECT t.typbasetype WHERE t.typtype = 'd'
        UNION ALL
        SELECT a.atttypid FROM pg_catalog.pg_attribute a
        WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) AS part (oid)
)
SELECT
    t.oid::bigint,
    pg_catalog.format_type(t.oid, NULL),
    t.typtype::text,
    t.typcategory::text,
    t.typsend <> 0 AND t.typreceive <> 0,
    t.typarray::bigint,
    CASE WHEN t.typcategory = 'A' THEN t.typelem::bigint ELSE 0 END,
    t.typbasetype::bigint,
    coalesce((
        SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
        WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ), '{}'),
    coalesce((
        SELECT pg_catalog.array_agg(a.atttypid::bigint ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
        WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ), '{}'),
    coalesce((
        SELECT pg_catalog.array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e
        WHERE e.enumtypid = t.oid
    ), '{}')
FROM pg_catalog.pg_type t
WHERE t.oid IN (SELECT oid FROM parts)
