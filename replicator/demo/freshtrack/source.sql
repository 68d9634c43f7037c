-- The source after tables.sql: Supabase's auth schema, row-level security and the application's triggers.

CREATE TABLE sensor_readings (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    unit_id uuid NOT NULL REFERENCES units(id) ON DELETE CASCADE,
    device_id uuid REFERENCES devices(id) ON DELETE SET NULL,
    temperature numeric(7,2) NOT NULL,
    humidity numeric(5,2),
    battery integer,
    signal_strength integer,
    raw_payload text,
    recorded_at timestamptz(3) NOT NULL,
    received_at timestamptz(3) NOT NULL DEFAULT now(),
    source varchar(32)
);
CREATE INDEX ON sensor_readings (device_id);
CREATE INDEX ON sensor_readings (recorded_at);
CREATE INDEX ON sensor_readings (unit_id, recorded_at);

CREATE SCHEMA auth;

CREATE TABLE auth.users (
    id uuid PRIMARY KEY,
    email text,
    phone text UNIQUE,
    encrypted_password text,
    email_confirmed_at timestamptz,
    raw_user_meta_data jsonb,
    raw_app_meta_data jsonb,
    banned_until timestamptz,
    is_sso_user boolean NOT NULL DEFAULT false,
    is_anonymous boolean NOT NULL DEFAULT false,
    deleted_at timestamptz,
    created_at timestamptz DEFAULT now()
);
CREATE UNIQUE INDEX ON auth.users (email) WHERE is_sso_user = false;

CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub', '')::uuid
$$;

-- calibration_records.calibrated_by and alert_rules_history.changed_by hold user IDs without a foreign key:
-- those of deleted users stay.
ALTER TABLE profiles ADD FOREIGN KEY (user_id) REFERENCES auth.users (id) ON DELETE CASCADE;
ALTER TABLE user_roles ADD FOREIGN KEY (user_id) REFERENCES auth.users (id) ON DELETE CASCADE;

CREATE FUNCTION public.set_updated_at() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    NEW.updated_at := pg_catalog.clock_timestamp();
    RETURN NEW;
END
$$;

-- Sign-up: the profile and role appear with the user, in the organization that invited them.
CREATE FUNCTION public.handle_new_user() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    organization uuid := NEW.raw_app_meta_data ->> 'organization_id';
BEGIN
    IF organization IS NOT NULL THEN
        INSERT INTO public.profiles (user_id, organization_id, email, full_name, avatar_url, phone)
        VALUES (NEW.id, organization, coalesce(NEW.email, ''), NEW.raw_user_meta_data ->> 'full_name',
            NEW.raw_user_meta_data ->> 'avatar_url', NEW.phone);
        INSERT INTO public.user_roles (user_id, organization_id, role)
        VALUES (NEW.id, organization, coalesce(NEW.raw_app_meta_data ->> 'role', 'viewer')::public.app_role);
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER on_auth_user_created AFTER INSERT ON auth.users
    FOR EACH ROW EXECUTE FUNCTION public.handle_new_user();

DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
        EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', name);
    END LOOP;
    FOR name IN
        SELECT attrelid::regclass::text FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE attname = 'updated_at' AND relkind = 'r' AND relnamespace = 'public'::regnamespace
    LOOP
        EXECUTE format('CREATE TRIGGER set_updated_at BEFORE UPDATE ON %s
            FOR EACH ROW EXECUTE FUNCTION public.set_updated_at()', name);
    END LOOP;
END
$$;

-- Forced: even the owner sees nothing without a policy. The other tables have RLS and, most of them, no policy.
ALTER TABLE profiles FORCE ROW LEVEL SECURITY;
ALTER TABLE event_logs FORCE ROW LEVEL SECURITY;
ALTER TABLE sensor_readings FORCE ROW LEVEL SECURITY;

CREATE POLICY own_profile ON profiles USING (user_id = auth.uid());
CREATE POLICY own_roles ON user_roles FOR SELECT USING (user_id = auth.uid());
CREATE POLICY members ON organizations FOR SELECT USING (
    id IN (SELECT organization_id FROM profiles WHERE user_id = auth.uid())
);
CREATE POLICY members ON sites FOR SELECT USING (
    organization_id IN (SELECT organization_id FROM profiles WHERE user_id = auth.uid())
);
