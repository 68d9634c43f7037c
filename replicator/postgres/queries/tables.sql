-- One row per table: ordinary and partitioned ones, partitions themselves left out.
-- Sizes of a partitioned table are the sums over its leaves.
SELECT
    n.nspname,
    c.relname,
    c.oid::bigint,
    c.relkind::text,
    c.reltype::bigint,
    (SELECT t.typarray::bigint FROM pg_catalog.pg_type t WHERE t.oid = c.reltype),
    c.relreplident::text,
    c.relrowsecurity,
    pg_catalog.pg_get_userbyid(c.relowner)::text,
    coalesce((
        SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.position)
        FROM pg_catalog.pg_index i
        CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, position)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
        WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND k.position <= i.indnkeyatts
    ), '{}'),
    coalesce((
        SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.position)
        FROM pg_catalog.pg_index i
        CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, position)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
        WHERE i.indrelid = c.oid AND i.indisreplident AND k.position <= i.indnkeyatts
    ), '{}'),
    leaves.rows,
    leaves.bytes,
    ARRAY(
        SELECT a.attnum::int FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attisdropped ORDER BY a.attnum
    ),
    leaves.filenode,
    -- as target/unaltered.py has it
    (
        SELECT coalesce(sum(pg_catalog.hashtextextended(
            pg_catalog.concat(a.attname, ' ', a.atttypid, ' ', a.attisdropped), a.attnum) >> 16), 0)::bigint
        FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0
    ),
    leaves.oids,
    leaves.names
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT
        coalesce(sum(greatest(l.reltuples, 0)), 0)::bigint AS rows,
        coalesce(sum(pg_catalog.pg_table_size(l.oid)), 0)::bigint AS bytes,
        coalesce(sum(l.relfilenode::bigint * (l.oid::bigint %% 65521)) %% 9007199254740881, 0)::bigint AS filenode,
        coalesce(
            pg_catalog.array_agg(l.oid::bigint ORDER BY l.oid) FILTER (WHERE l.relispartition), '{}'
        ) AS oids,
        coalesce(
            pg_catalog.array_agg(l.relname::text ORDER BY l.oid) FILTER (WHERE l.relispartition), '{}'
        ) AS names
    FROM pg_catalog.pg_class l
    WHERE l.relkind = 'r'
      AND (l.oid = c.oid OR c.relkind = 'p' AND l.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(c.oid)))
) AS leaves
WHERE c.relkind IN ('r', 'p')
  AND NOT c.relispartition
  AND c.relpersistence = 'p'
  AND (n.nspname, c.relname) IN (SELECT s, t FROM unnest(%s::text[], %s::text[]) AS wanted (s, t))
