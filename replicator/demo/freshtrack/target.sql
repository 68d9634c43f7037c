-- The target after tables.sql: monthly partitions, and triggers that must not fire for replicated rows.

CREATE TABLE sensor_readings (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    unit_id uuid NOT NULL REFERENCES units(id) ON DELETE CASCADE,
    device_id uuid REFERENCES devices(id) ON DELETE SET NULL,
    temperature numeric(7,2) NOT NULL,
    humidity numeric(5,2),
    battery integer,
    signal_strength integer,
    raw_payload text,
    recorded_at timestamptz(3) NOT NULL,
    received_at timestamptz(3) NOT NULL DEFAULT now(),
    source varchar(32),
    PRIMARY KEY (id, recorded_at)
) PARTITION BY RANGE (recorded_at);
CREATE INDEX ON sensor_readings (device_id);
CREATE INDEX ON sensor_readings (recorded_at);
CREATE INDEX ON sensor_readings (unit_id, recorded_at);

DO $$
DECLARE
    month date;
BEGIN
    FOR month IN SELECT generate_series('2024-01-01'::date, '2026-06-01'::date, '1 month') LOOP
        EXECUTE format(
            'CREATE TABLE public.%I PARTITION OF public.sensor_readings FOR VALUES FROM (%L) TO (%L)',
            to_char(month, '"sensor_readings_"YYYY_MM'),
            month::text || ' 00:00:00+00',
            (month + interval '1 month')::date::text || ' 00:00:00+00'
        );
    END LOOP;
END
$$;
CREATE TABLE sensor_readings_default PARTITION OF sensor_readings DEFAULT;

ALTER TABLE alert_rules_history ADD FOREIGN KEY (changed_by) REFERENCES profiles (id) ON DELETE SET NULL;

-- Both triggers are right for the application and wrong for a replicator: one would falsify updated_at,
-- the other would add rows to a table outside the plan.
CREATE FUNCTION public.set_updated_at() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    NEW.updated_at := pg_catalog.clock_timestamp();
    RETURN NEW;
END
$$;

CREATE TABLE trigger_audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name text NOT NULL,
    operation text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION public.audit_change() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    INSERT INTO public.trigger_audit (table_name, operation) VALUES (TG_TABLE_NAME, TG_OP);
    RETURN NULL;
END
$$;

DO $$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT relname FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
            AND relname <> 'trigger_audit'
    LOOP
        EXECUTE format('CREATE TRIGGER audit_change AFTER INSERT OR UPDATE OR DELETE ON public.%I
            FOR EACH ROW EXECUTE FUNCTION public.audit_change()', name);
    END LOOP;
    FOR name IN
        SELECT attrelid::regclass::text FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE attname = 'updated_at' AND relkind = 'r' AND relnamespace = 'public'::regnamespace
    LOOP
        EXECUTE format('CREATE TRIGGER set_updated_at BEFORE INSERT OR UPDATE ON %s
            FOR EACH ROW EXECUTE FUNCTION public.set_updated_at()', name);
    END LOOP;
END
$$;
