-- What a table was when its rows were copied, columns by attnum, and what has become of it since: see routing/record.py.
ALTER TABLE replicator.table_state
    ADD COLUMN record jsonb,
    DROP COLUMN columns,
    DROP COLUMN homeless;
