"""The schemas of both sides, and settings that replicate one to the other."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

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

EXTRA_TABLES: tuple[str, ...] = ("invoice_numbers", "tickets", "append_log")

# By name, as the settings have them.
ID_MAPS: dict[str, dict[str, Any]] = {
    "users": {
        "kind": "table",
        "columns": ["profiles.user_id", "user_roles.user_id"],
        "on_unmapped": "keep",
    },
    "profile_of_user": {
        "kind": "lookup",
        "table": "profiles",
        "key": "user_id",
        "value": "id",
        "columns": ["calibration_records.calibrated_by", "alert_rules_history.changed_by"],
        "on_unmapped": "null",
    },
}


def source_schema() -> str:
    """SQL of the source: the 23 tables, ``auth.users``, row-level security, triggers."""
    return _sql("tables.sql") + _sql("source.sql")


def target_schema() -> str:
    """SQL of the target: the 23 tables, ``sensor_readings`` in monthly partitions, triggers, an audit table."""
    return _sql("tables.sql") + _sql("target.sql")


def extras_schema() -> str:
    """SQL of `EXTRA_TABLES`, the same on both sides."""
    return _sql("extras.sql")


def settings_toml(
    source_dsn: str,
    target_dsn: str,
    *,
    extras: bool = False,
    id_maps: bool = True,
    listen: str = "",
    **overrides: dict[str, Any],
) -> str:
    """A ``replicator.toml`` for this case.

    Args:
        extras: replicate `EXTRA_TABLES` too.
        id_maps: False copies every column as it is.
        listen: address of the metrics endpoint; empty turns it off.
        overrides: more keys per section, such as ``stream={"max_batch_rows": 100}``.
    """
    sections: dict[str, dict[str, Any]] = {
        "source": {"dsn": source_dsn},
        "target": {"dsn": target_dsn},
        "metrics": {"listen": listen},
    }
    for section, values in overrides.items():
        sections.setdefault(section, {}).update(values)
    tables = [*TABLES, *(EXTRA_TABLES if extras else ())]
    maps = {f"id_maps.{name}": values for name, values in ID_MAPS.items()} if id_maps else {}
    lines = [f"tables = {_toml(tables)}"]  # before the sections: TOML would take it for a key of the last one
    for section, values in (sections | maps).items():
        lines += ["", f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _toml(value: bool | float | str | list[str]) -> str:
    # Strings, numbers, booleans and arrays of JSON are TOML too, as long as characters stand for themselves.
    return json.dumps(value, ensure_ascii=False)


def _sql(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
