-- Both sides: enums and 22 of the 23 tables. sensor_readings differs: see source.sql and target.sql.

CREATE TYPE alert_severity AS ENUM ('info', 'warning', 'critical');
CREATE TYPE alert_status AS ENUM ('active', 'acknowledged', 'resolved', 'escalated');
CREATE TYPE alert_type AS ENUM (
    'alarm_active', 'monitoring_interrupted', 'missed_manual_entry', 'low_battery', 'sensor_fault', 'door_open',
    'calibration_due'
);
CREATE TYPE app_role AS ENUM ('owner', 'admin', 'manager', 'staff', 'viewer');
CREATE TYPE compliance_mode AS ENUM ('standard', 'haccp');
CREATE TYPE device_status AS ENUM ('active', 'inactive', 'pairing', 'error');
CREATE TYPE gateway_status AS ENUM ('online', 'offline', 'disconnected', 'unknown');
CREATE TYPE notification_channel AS ENUM ('push', 'email', 'sms');
CREATE TYPE notification_status AS ENUM ('pending', 'sent', 'delivered', 'failed');
CREATE TYPE pairing_status AS ENUM ('pending', 'completed', 'failed', 'expired');
CREATE TYPE subscription_plan AS ENUM ('starter', 'pro', 'haccp', 'enterprise');
CREATE TYPE subscription_status AS ENUM ('trial', 'active', 'past_due', 'canceled', 'paused');
CREATE TYPE temp_unit AS ENUM ('F', 'C');
CREATE TYPE unit_status AS ENUM (
    'ok', 'excursion', 'alarm_active', 'monitoring_interrupted', 'manual_required', 'restoring', 'offline'
);
CREATE TYPE unit_type AS ENUM (
    'fridge', 'freezer', 'display_case', 'walk_in_cooler', 'walk_in_freezer', 'blast_chiller'
);

CREATE TABLE organizations (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(256) NOT NULL,
    slug varchar(256) NOT NULL,
    timezone varchar(100) NOT NULL DEFAULT 'UTC',
    compliance_mode compliance_mode NOT NULL DEFAULT 'standard',
    sensor_limit integer NOT NULL DEFAULT 10,
    logo_url text,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    deleted_at timestamptz
);
CREATE UNIQUE INDEX ON organizations (slug);

CREATE TABLE subscriptions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations(id) ON DELETE CASCADE,
    plan subscription_plan NOT NULL DEFAULT 'starter',
    status subscription_status NOT NULL DEFAULT 'trial',
    stripe_customer_id varchar(256),
    stripe_subscription_id varchar(256),
    current_period_start timestamptz(3),
    current_period_end timestamptz(3),
    trial_ends_at timestamptz(3),
    canceled_at timestamptz(3),
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON subscriptions (organization_id);
CREATE INDEX ON subscriptions (stripe_customer_id);

CREATE TABLE profiles (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    organization_id uuid NOT NULL REFERENCES organizations(id) ON DELETE CASCADE,
    email varchar(256) NOT NULL,
    full_name varchar(256),
    avatar_url text,
    phone varchar(50),
    phone_verified boolean NOT NULL DEFAULT false,
    push_enabled boolean NOT NULL DEFAULT true,
    email_enabled boolean NOT NULL DEFAULT true,
    sms_enabled boolean NOT NULL DEFAULT false,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now(),
    digest_daily boolean NOT NULL DEFAULT false,
    digest_weekly boolean NOT NULL DEFAULT false,
    timezone varchar(64) NOT NULL DEFAULT 'UTC',
    digest_daily_time varchar(5) NOT NULL DEFAULT '09:00',
    digest_site_ids text
);
CREATE INDEX ON profiles (email);
CREATE INDEX ON profiles (organization_id);
CREATE UNIQUE INDEX ON profiles (user_id);

CREATE TABLE sites (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations(id) ON DELETE CASCADE,
    name varchar(256) NOT NULL,
    address text,
    city varchar(128),
    state varchar(64),
    postal_code varchar(20),
    country varchar(64),
    timezone varchar(100) NOT NULL DEFAULT 'UTC',
    latitude varchar(32),
    longitude varchar(32),
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON sites (organization_id);
CREATE INDEX ON sites (organization_id, is_active);

CREATE TABLE ttn_connections (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations(id) ON DELETE CASCADE,
    application_id varchar(256),
    webhook_secret varchar(256) NOT NULL,
    is_active boolean NOT NULL DEFAULT true,
    last_used_at timestamptz(3),
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON ttn_connections (organization_id);
CREATE UNIQUE INDEX ON ttn_connections (webhook_secret);

CREATE TABLE user_roles (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    organization_id uuid NOT NULL REFERENCES organizations(id) ON DELETE CASCADE,
    role app_role NOT NULL DEFAULT 'viewer',
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON user_roles (organization_id);
CREATE UNIQUE INDEX ON user_roles (user_id, organization_id);

CREATE TABLE escalation_contacts (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations(id) ON DELETE CASCADE,
    profile_id uuid REFERENCES profiles(id) ON DELETE CASCADE,
    name varchar(256) NOT NULL,
    phone varchar(50) NOT NULL,
    email varchar(256),
    priority integer NOT NULL DEFAULT 0,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON escalation_contacts (organization_id);
CREATE INDEX ON escalation_contacts (organization_id, priority);
CREATE INDEX ON escalation_contacts (profile_id);

CREATE TABLE areas (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    site_id uuid NOT NULL REFERENCES sites(id) ON DELETE CASCADE,
    name varchar(256) NOT NULL,
    description text,
    sort_order integer NOT NULL DEFAULT 0,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON areas (site_id);
CREATE INDEX ON areas (site_id, sort_order);

CREATE TABLE hubs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    site_id uuid NOT NULL REFERENCES sites(id) ON DELETE CASCADE,
    name varchar(256) NOT NULL,
    mac_address varchar(17),
    firmware_version varchar(32),
    last_seen_at timestamptz(3),
    is_online boolean NOT NULL DEFAULT false,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX ON hubs (mac_address);
CREATE INDEX ON hubs (site_id);

CREATE TABLE units (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    area_id uuid NOT NULL REFERENCES areas(id) ON DELETE CASCADE,
    name varchar(256) NOT NULL,
    unit_type unit_type NOT NULL,
    status unit_status NOT NULL DEFAULT 'ok',
    temp_min integer NOT NULL,
    temp_max integer NOT NULL,
    temp_unit temp_unit NOT NULL DEFAULT 'F',
    manual_monitoring_required boolean NOT NULL DEFAULT false,
    manual_monitoring_interval integer,
    last_reading_at timestamptz(3),
    last_temperature integer,
    is_active boolean NOT NULL DEFAULT true,
    sort_order integer NOT NULL DEFAULT 0,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON units (area_id);
CREATE INDEX ON units (area_id, is_active);
CREATE INDEX ON units (last_reading_at) WHERE is_active;
CREATE INDEX ON units (status);
CREATE INDEX ON units (unit_type);

CREATE TABLE devices (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    unit_id uuid REFERENCES units(id) ON DELETE SET NULL,
    hub_id uuid REFERENCES hubs(id) ON DELETE SET NULL,
    device_eui varchar(32) NOT NULL,
    name varchar(256),
    device_type varchar(64),
    status device_status NOT NULL DEFAULT 'inactive',
    battery integer,
    signal_strength integer,
    firmware_version varchar(32),
    last_seen_at timestamptz(3),
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX ON devices (device_eui);
CREATE INDEX ON devices (hub_id);
CREATE INDEX ON devices (status);
CREATE INDEX ON devices (unit_id);

CREATE TABLE alert_rules (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations(id) ON DELETE CASCADE,
    site_id uuid REFERENCES sites(id) ON DELETE CASCADE,
    unit_id uuid REFERENCES units(id) ON DELETE CASCADE,
    name varchar(256) NOT NULL,
    temp_min integer,
    temp_max integer,
    delay_minutes integer NOT NULL DEFAULT 5,
    alert_type alert_type NOT NULL DEFAULT 'alarm_active',
    severity alert_severity NOT NULL DEFAULT 'warning',
    is_enabled boolean NOT NULL DEFAULT true,
    schedule text,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON alert_rules (organization_id);
CREATE INDEX ON alert_rules (organization_id, is_enabled);
CREATE INDEX ON alert_rules (site_id);
CREATE INDEX ON alert_rules (unit_id);

CREATE TABLE lora_sensors (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    device_id uuid NOT NULL REFERENCES devices(id) ON DELETE CASCADE,
    app_eui varchar(32) NOT NULL,
    dev_eui varchar(32) NOT NULL,
    app_key varchar(64),
    join_eui varchar(32),
    network_server_id varchar(128),
    activation_type varchar(16) DEFAULT 'OTAA',
    last_join_at timestamptz(3),
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON lora_sensors (app_eui);
CREATE UNIQUE INDEX ON lora_sensors (dev_eui);
CREATE UNIQUE INDEX ON lora_sensors (device_id);

CREATE TABLE calibration_records (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    device_id uuid NOT NULL REFERENCES devices(id) ON DELETE CASCADE,
    calibrated_at timestamptz(3) NOT NULL,
    calibrated_by uuid,
    temperature_offset integer,
    humidity_offset integer,
    reference_temperature integer,
    certificate_url text,
    notes text,
    expires_at timestamptz(3),
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON calibration_records (device_id);
CREATE INDEX ON calibration_records (device_id, calibrated_at);
CREATE INDEX ON calibration_records (expires_at);

CREATE TABLE manual_temperature_logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    unit_id uuid NOT NULL REFERENCES units(id) ON DELETE CASCADE,
    profile_id uuid REFERENCES profiles(id) ON DELETE SET NULL,
    temperature numeric(7,2) NOT NULL,
    humidity numeric(5,2),
    notes text,
    photo_url text,
    recorded_at timestamptz(3) NOT NULL,
    created_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON manual_temperature_logs (profile_id);
CREATE INDEX ON manual_temperature_logs (recorded_at);
CREATE INDEX ON manual_temperature_logs (unit_id, recorded_at);

CREATE TABLE door_events (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    unit_id uuid NOT NULL REFERENCES units(id) ON DELETE CASCADE,
    device_id uuid REFERENCES devices(id) ON DELETE SET NULL,
    state varchar(16) NOT NULL,
    "timestamp" timestamptz(3) NOT NULL,
    duration_seconds integer,
    created_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON door_events (timestamp);
CREATE INDEX ON door_events (device_id);
CREATE INDEX ON door_events (unit_id, "timestamp");

CREATE TABLE alerts (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    unit_id uuid NOT NULL REFERENCES units(id) ON DELETE CASCADE,
    alert_rule_id uuid REFERENCES alert_rules(id) ON DELETE SET NULL,
    alert_type alert_type NOT NULL,
    severity alert_severity NOT NULL,
    status alert_status NOT NULL DEFAULT 'active',
    message text,
    trigger_temperature integer,
    threshold_violated varchar(16),
    triggered_at timestamptz(3) NOT NULL DEFAULT now(),
    acknowledged_at timestamptz(3),
    acknowledged_by uuid REFERENCES profiles(id) ON DELETE SET NULL,
    resolved_at timestamptz(3),
    resolved_by uuid REFERENCES profiles(id) ON DELETE SET NULL,
    escalated_at timestamptz(3),
    escalation_level integer NOT NULL DEFAULT 0,
    metadata text,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON alerts (alert_type);
CREATE INDEX ON alerts (status);
CREATE INDEX ON alerts (status, severity);
CREATE INDEX ON alerts (status, triggered_at) WHERE status IN ('active', 'escalated');
CREATE INDEX ON alerts (triggered_at);
CREATE INDEX ON alerts (unit_id);
CREATE INDEX ON alerts (unit_id, status);
CREATE INDEX ON alerts (unit_id, triggered_at);

CREATE TABLE alert_rules_history (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    alert_rule_id uuid NOT NULL REFERENCES alert_rules(id) ON DELETE CASCADE,
    changed_by uuid,
    change_type varchar(32) NOT NULL,
    old_values text,
    new_values text,
    changed_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON alert_rules_history (alert_rule_id);
CREATE INDEX ON alert_rules_history (changed_at);

CREATE TABLE corrective_actions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    alert_id uuid NOT NULL REFERENCES alerts(id) ON DELETE CASCADE,
    unit_id uuid NOT NULL REFERENCES units(id) ON DELETE CASCADE,
    profile_id uuid REFERENCES profiles(id) ON DELETE SET NULL,
    description text NOT NULL,
    action_taken text,
    photo_url text,
    resolved_alert boolean NOT NULL DEFAULT false,
    action_at timestamptz(3) NOT NULL DEFAULT now(),
    created_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON corrective_actions (action_at);
CREATE INDEX ON corrective_actions (alert_id);
CREATE INDEX ON corrective_actions (profile_id);
CREATE INDEX ON corrective_actions (unit_id);

CREATE TABLE notification_deliveries (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    alert_id uuid NOT NULL REFERENCES alerts(id) ON DELETE CASCADE,
    profile_id uuid REFERENCES profiles(id) ON DELETE SET NULL,
    channel notification_channel NOT NULL,
    recipient varchar(256) NOT NULL,
    status notification_status NOT NULL DEFAULT 'pending',
    external_id varchar(256),
    error_message text,
    scheduled_at timestamptz(3) NOT NULL DEFAULT now(),
    sent_at timestamptz(3),
    delivered_at timestamptz(3),
    failed_at timestamptz(3),
    retry_count integer DEFAULT 0,
    last_retry_at timestamptz(3),
    created_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON notification_deliveries (alert_id);
CREATE INDEX ON notification_deliveries (channel);
CREATE INDEX ON notification_deliveries (channel, status, sent_at);
CREATE INDEX ON notification_deliveries (external_id);
CREATE INDEX ON notification_deliveries (profile_id);
CREATE INDEX ON notification_deliveries (scheduled_at);
CREATE INDEX ON notification_deliveries (status);
CREATE INDEX ON notification_deliveries (status, scheduled_at);

CREATE TABLE event_logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations(id) ON DELETE CASCADE,
    actor_id uuid REFERENCES profiles(id) ON DELETE SET NULL,
    actor_type varchar(32) NOT NULL,
    event_type varchar(64) NOT NULL,
    event_category varchar(64),
    entity_type varchar(64) NOT NULL,
    entity_id uuid,
    description text,
    payload text,
    old_values text,
    new_values text,
    ip_address varchar(45),
    user_agent text,
    previous_hash varchar(64),
    hash varchar(64) NOT NULL,
    occurred_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON event_logs (actor_id);
CREATE INDEX ON event_logs (entity_type, entity_id);
CREATE INDEX ON event_logs (event_type);
CREATE INDEX ON event_logs (hash);
CREATE INDEX ON event_logs (occurred_at);
CREATE INDEX ON event_logs (organization_id);
CREATE INDEX ON event_logs (organization_id, occurred_at);

CREATE TABLE pairing_sessions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    device_id uuid REFERENCES devices(id) ON DELETE CASCADE,
    status pairing_status NOT NULL DEFAULT 'pending',
    pairing_code varchar(16),
    started_at timestamptz(3) NOT NULL DEFAULT now(),
    completed_at timestamptz(3),
    expires_at timestamptz(3) NOT NULL,
    metadata text,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    updated_at timestamptz(3) NOT NULL DEFAULT now()
);
CREATE INDEX ON pairing_sessions (device_id);
CREATE INDEX ON pairing_sessions (pairing_code);
CREATE INDEX ON pairing_sessions (status);
