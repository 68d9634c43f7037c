"""What is written to the source while the movers are paused, each a procedure of one argument: how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from bench.lab import execute


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of traffic.

    Attributes:
        share: of the run's transactions: how many ``write`` makes of it, by what they weigh.
        tables: those it writes to, which are compared afterwards.
    """

    name: str
    title: str
    share: float
    tables: Sequence[str]
    procedure: str

    def install(self, dsn: str) -> None:
        """Create the procedure on the source."""
        execute(dsn, self.procedure)

    def write(self, dsn: str, count: int) -> int:
        """Write; returns the number of rows inserted, updated and deleted."""
        before = _changes(dsn, self.tables)
        with psycopg.connect(dsn, autocommit=True) as conn:
            # The writer does not wait for its own commits; the movers wait for theirs.
            conn.execute("SET synchronous_commit = off")
            conn.execute(f"CALL public.bench_{self.name}({count})".encode())
            conn.execute("CHECKPOINT")
        return _changes(dsn, self.tables) - before


def _changes(dsn: str, tables: Sequence[str]) -> int:
    """As the source's own statistics count them; a session's are complete when it has ended."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute(
            "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables"
            " WHERE schemaname = 'public' AND relname = ANY(%s)",
            [list(tables)],
        ).fetchone()
    assert row is not None
    return int(row[0] or 0)


# Sensors report, doors open, alerts come and are acknowledged, people note temperatures, old deliveries are deleted.
_MIX = """
CREATE OR REPLACE PROCEDURE public.bench_mix(n integer) LANGUAGE plpgsql AS $$
DECLARE
    units uuid[] := ARRAY(SELECT id FROM public.units ORDER BY id LIMIT 500);
    devices uuid[] := ARRAY(SELECT id FROM public.devices ORDER BY id LIMIT 500);
    people uuid[] := ARRAY(SELECT id FROM public.profiles ORDER BY id LIMIT 200);
    accounts uuid[] := ARRAY(SELECT user_id FROM public.profiles ORDER BY id LIMIT 200);
    rules uuid[] := ARRAY(SELECT id FROM public.alert_rules ORDER BY id LIMIT 200);
    organization uuid := (SELECT id FROM public.organizations ORDER BY id LIMIT 1);
    deliveries uuid[] := ARRAY[]::uuid[];
    raised uuid[] := ARRAY[]::uuid[];
    unit uuid; device uuid; fresh uuid; kind integer;
BEGIN
    FOR i IN 1..n LOOP
        unit := units[1 + (i * 7) % array_length(units, 1)];
        device := devices[1 + (i * 7) % array_length(devices, 1)];
        kind := i % 50;
        IF kind < 30 THEN
            INSERT INTO public.sensor_readings
                (unit_id, device_id, temperature, humidity, battery, signal_strength, recorded_at, source)
            VALUES (unit, device, (i % 900) / 10.0, 40, 90, -70, timestamptz '2025-01-01' + i * interval '71 s', 'ble');
            UPDATE public.units SET last_reading_at = now(), last_temperature = i % 500 WHERE id = unit;
            INSERT INTO public.event_logs (organization_id, actor_type, event_type, entity_type, entity_id, hash)
            VALUES (organization, 'system', 'reading', 'unit', unit, md5(i::text));
        ELSIF kind < 36 THEN
            UPDATE public.devices SET battery = i % 100, signal_strength = -(i % 120), last_seen_at = now()
            WHERE id = device;
        ELSIF kind < 41 THEN
            INSERT INTO public.door_events (unit_id, device_id, state, timestamp)
            VALUES (unit, device, CASE i % 2 WHEN 0 THEN 'open' ELSE 'closed' END, now());
        ELSIF kind < 44 THEN
            INSERT INTO public.alerts (unit_id, alert_type, severity, message, triggered_at)
            VALUES (unit, 'alarm_active', 'warning', 'too warm for ' || i || ' s', now()) RETURNING id INTO fresh;
            raised := raised || fresh;
            INSERT INTO public.notification_deliveries (alert_id, profile_id, channel, recipient)
            VALUES (fresh, people[1 + i % array_length(people, 1)], 'email', 'user@example.com')
            RETURNING id INTO fresh;
            deliveries := deliveries || fresh;
        ELSIF kind < 46 THEN
            UPDATE public.alerts SET status = 'acknowledged', acknowledged_at = now(),
                acknowledged_by = people[1 + i % array_length(people, 1)]
            WHERE id = raised[array_length(raised, 1)];
        ELSIF kind < 48 THEN
            INSERT INTO public.manual_temperature_logs (unit_id, profile_id, temperature, recorded_at)
            VALUES (unit, people[1 + i % array_length(people, 1)], 3.5, now());
        ELSIF kind < 49 THEN
            INSERT INTO public.alert_rules_history (alert_rule_id, changed_by, change_type)
            VALUES (rules[1 + i % array_length(rules, 1)], accounts[1 + i % array_length(accounts, 1)], 'update');
        ELSE
            DELETE FROM public.notification_deliveries WHERE id = ANY(deliveries);
            deliveries := ARRAY[]::uuid[];
            raised := raised[array_length(raised, 1):];
        END IF;
        COMMIT;
    END LOOP;
END $$
"""

# Ten units report as fast as they can.
_HOT = """
CREATE OR REPLACE PROCEDURE public.bench_hot(n integer) LANGUAGE plpgsql AS $$
DECLARE
    hot uuid[] := ARRAY(SELECT id FROM public.units ORDER BY id LIMIT 10);
BEGIN
    FOR i IN 1..n LOOP
        UPDATE public.units SET last_reading_at = now(), last_temperature = i % 500
        WHERE id = hot[1 + i % array_length(hot, 1)];
        COMMIT;
    END LOOP;
END $$
"""

# An import, as one transaction: readings, log entries, and corrections of door events.
_GIANT = """
CREATE OR REPLACE PROCEDURE public.bench_giant(n integer) LANGUAGE plpgsql AS $$
DECLARE
    units uuid[] := ARRAY(SELECT id FROM public.units ORDER BY id LIMIT 500);
    organization uuid := (SELECT id FROM public.organizations ORDER BY id LIMIT 1);
BEGIN
    INSERT INTO public.sensor_readings
        (unit_id, temperature, humidity, battery, signal_strength, recorded_at, source)
    SELECT units[1 + i % array_length(units, 1)], (i % 900) / 10.0, 40, 90, -70,
        timestamptz '2025-01-01' + i * interval '71 s', 'import'
    FROM generate_series(1, n * 8 / 10) i;
    INSERT INTO public.event_logs (organization_id, actor_type, event_type, entity_type, hash)
    SELECT organization, 'system', 'import', 'unit', md5(i::text) FROM generate_series(1, n / 10) i;
    UPDATE public.door_events SET duration_seconds = coalesce(duration_seconds, 0) + 1
    WHERE id IN (SELECT id FROM public.door_events ORDER BY id LIMIT n / 10);
    COMMIT;
END $$
"""

# 30 columns, 2 kB out of line: rows come in, most updates leave the long value alone, some replace it.
_WIDE = """
CREATE OR REPLACE PROCEDURE public.bench_wide(n integer) LANGUAGE plpgsql AS $$
DECLARE
    fresh uuid;
    body text;
BEGIN
    FOR i IN 1..n LOOP
        body := (SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 64) j);
        INSERT INTO public.wide_records (body, n0, n1, n2, n3, t0, t1, t2, t3, m0, m1, m2, at0, at1, b0, u0)
        VALUES (body, i, i, i, i, 'first', 'second', 'third', 'fourth', i / 3.0, i / 7.0, i, now(), now(), true,
            gen_random_uuid())
        RETURNING id INTO fresh;
        COMMIT;
        UPDATE public.wide_records SET n4 = i, n5 = i, t4 = 'seen', at2 = now() WHERE id = fresh;
        COMMIT;
        IF i % 10 = 0 THEN
            UPDATE public.wide_records SET body = reverse(wide_records.body) WHERE id = fresh;
            COMMIT;
        END IF;
    END LOOP;
END $$
"""

WORKLOADS = (
    Workload(
        "mix",
        "FreshTrack mix of small transactions",
        1.0,
        (
            *("sensor_readings", "units", "event_logs", "devices", "door_events", "alerts", "notification_deliveries"),
            *("manual_temperature_logs", "alert_rules_history"),
        ),
        _MIX,
    ),
    Workload("hot", "updates of ten hot rows", 2.0, ("units",), _HOT),
    Workload("giant", "one giant transaction", 3.0, ("sensor_readings", "event_logs", "door_events"), _GIANT),
    Workload("wide", "wide rows: 30 columns, 2 kB TOAST", 0.25, ("wide_records",), _WIDE),
)
