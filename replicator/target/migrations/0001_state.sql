-- Our own state. Not readable by others: id_map holds e-mail addresses.
CREATE SCHEMA IF NOT EXISTS replicator;
REVOKE ALL ON SCHEMA replicator FROM PUBLIC;

CREATE TABLE replicator.migration (
    version integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- One row per slot. applied_lsn moves in the same transaction as the rows, and nothing else says what has been applied.
CREATE TABLE replicator.checkpoint (
    slot text PRIMARY KEY,
    applied_lsn pg_lsn NOT NULL,
    commit_time timestamptz,                -- source commit time of the last applied transaction
    system_identifier text NOT NULL,        -- which source cluster …
    database text NOT NULL,                 -- … and database this position belongs to
    phase text NOT NULL CHECK (phase IN ('new', 'copying', 'catching_up', 'streaming', 'cutting_over', 'cut_over')),
    fence text,                             -- token of the last fence that the stream delivered
    lag_seconds double precision,
    problem text,                           -- why the service stopped or is retrying; no row values
    map_version bigint NOT NULL DEFAULT 0,  -- raised by whoever changes id_map from outside the service
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE TABLE replicator.table_state (
    slot text NOT NULL,
    table_schema text NOT NULL,
    table_name text NOT NULL,
    -- copy_requested: `snapshot --table` asks the running service to copy it again
    state text NOT NULL CHECK (state IN ('pending', 'copying', 'copied', 'copy_requested')),
    attempt integer NOT NULL DEFAULT 0,     -- fences off a copy that outlived its process
    snapshot_lsn pg_lsn,                    -- consistent point of the snapshot that the rows came from
    columns text[],                         -- source columns at that time: a newer one without a home is news
    homeless text[],                        -- those of them that had no home on the target even then
    published bigint,                       -- OID in pg_publication_rel then: another one means that changes are missing
    rows_copied bigint NOT NULL DEFAULT 0,
    bytes_copied bigint NOT NULL DEFAULT 0,
    rows_applied bigint NOT NULL DEFAULT 0,
    differences bigint,                     -- rows that the last verification found missing, extra or different
    started_at timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (slot, table_schema, table_name)
) WITH (fillfactor = 50);

-- One row per part of a table's copy, committed with its rows: a part that is handed out twice is copied once.
CREATE TABLE replicator.copied_part (
    slot text NOT NULL,
    table_schema text NOT NULL,
    table_name text NOT NULL,
    attempt integer NOT NULL,
    part integer NOT NULL,
    rows bigint,
    bytes bigint,
    PRIMARY KEY (slot, table_schema, table_name, attempt, part)
);

CREATE TABLE replicator.id_map (
    map text NOT NULL,
    source_id text NOT NULL,
    target_id text NOT NULL,
    email text,
    created_at timestamptz NOT NULL DEFAULT now(),
    retain_until timestamptz,
    PRIMARY KEY (map, source_id)
);
CREATE INDEX id_map_target_id ON replicator.id_map (map, target_id);

CREATE TABLE replicator.unmapped_id (
    map text NOT NULL,
    table_schema text NOT NULL,
    table_name text NOT NULL,
    column_name text NOT NULL,
    source_id text NOT NULL,
    first_seen timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (map, source_id, table_schema, table_name, column_name)
);

CREATE TABLE replicator.deferred_index (
    index_schema text NOT NULL,
    index_name text NOT NULL,
    table_schema text NOT NULL,
    table_name text NOT NULL,
    definition text NOT NULL,
    state text NOT NULL CHECK (state IN ('dropped', 'rebuilt')),
    PRIMARY KEY (index_schema, index_name)
);

-- Changes that the target refused, and later ones of the same rows, which wait behind them. Holds values of rows.
CREATE TABLE replicator.quarantine (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- in the order of the source
    slot text NOT NULL,
    table_schema text NOT NULL,
    table_name text NOT NULL,
    op text NOT NULL CHECK (op IN ('insert', 'update', 'delete')),
    columns text[] NOT NULL,                -- of the target: new_row has a field for each
    attnums integer[] NOT NULL,             -- of those columns: a name may be another column's by now
    types text[] NOT NULL,                  -- of those columns, when the change came
    key_columns text[] NOT NULL,            -- old_row has a field for each: the key, or all columns of a table without one
    old_row bytea,                          -- of a DELETE, and of an UPDATE that changes the key; fields in binary form
    new_row bytea,                          -- of an INSERT or UPDATE
    key text[],                             -- values of key_columns as people read them; NULL: they cannot be read
    error text,                             -- why it was refused, by names alone; NULL: it waits behind another
    lsn pg_lsn NOT NULL,                    -- of its transaction's COMMIT
    attempts integer NOT NULL DEFAULT 0,
    retry_requested boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX quarantine_table ON replicator.quarantine (slot, table_schema, table_name);

CREATE TABLE replicator.cutover_step (
    slot text NOT NULL,
    step text NOT NULL,
    position integer NOT NULL,
    state text NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed', 'undone')),
    started_at timestamptz,
    finished_at timestamptz,
    detail jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (slot, step)
);
