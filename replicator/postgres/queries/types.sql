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
    ), '{}'),
    coalesce((
        SELECT n.nspname::text
        FROM pg_catalog.pg_opclass c
        JOIN pg_catalog.pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
        JOIN pg_catalog.pg_amop a ON a.amopfamily = c.opcfamily AND a.amopstrategy = 3
            AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype
        JOIN pg_catalog.pg_operator o ON o.oid = a.amopopr AND o.oprname = '='
        JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
        WHERE c.opcdefault AND c.opcintype = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
        LIMIT 1
    ), 'pg_catalog')
FROM pg_catalog.pg_type t
WHERE t.oid IN (SELECT oid FROM parts)
