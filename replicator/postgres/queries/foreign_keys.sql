-- Foreign keys of the given tables; those that a partition inherits are its parent's.
SELECT
    k.conrelid::bigint,
    k.conname::text,
    (SELECT pg_catalog.array_agg(a.attname::text ORDER BY p.position)
     FROM unnest(k.conkey) WITH ORDINALITY AS p (attnum, position)
     JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = p.attnum),
    n.nspname::text,
    r.relname::text,
    (SELECT pg_catalog.array_agg(a.attname::text ORDER BY p.position)
     FROM unnest(k.confkey) WITH ORDINALITY AS p (attnum, position)
     JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = p.attnum),
    k.confdeltype::text,
    k.confupdtype::text
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class r ON r.oid = k.confrelid
JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid = ANY (%s::oid[])
ORDER BY k.conrelid, k.conname
