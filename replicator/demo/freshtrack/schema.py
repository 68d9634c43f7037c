"""The schemas of both sides, and settings that replicate one to the other."""

from __future__ import annotations

TABLES: tuple[str, ...] = (
    "organizations",
    "subscriptions",
    "profiles",
    "sites",
    "ttn_connections",
    "user_roles",
    "escalation_contacts",
    "areas",
    "hubs",
    "event_logs",
    "units",
    "alert_rules",
    "devices",
    "manual_temperature_logs",
    "lora_sensors",
    "calibration_records",
    "sensor_readings",
    "door_events",
    "alerts",
    "alert_rules_history",
    "pairing_sessions",
    "corrective_actions",
    "notification_deliveries",
)
