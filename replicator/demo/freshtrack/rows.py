"""Rows of the sample data, table by table, parents first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from random import Random

from replicator.demo.freshtrack import values
from replicator.demo.freshtrack.values import maybe, moment, pick, text, uuid4

Row = tuple[object, ...]

_BIG = 1_000_000  # characters

COLUMNS = {
    "auth.users": "id email phone encrypted_password email_confirmed_at raw_user_meta_data raw_app_meta_data"
    " banned_until is_sso_user is_anonymous deleted_at created_at",
    "organizations": "id name slug timezone compliance_mode sensor_limit logo_url created_at updated_at deleted_at",
    "subscriptions": "id organization_id plan status stripe_customer_id current_period_end created_at updated_at",
    "profiles": "id user_id organization_id email full_name avatar_url phone phone_verified created_at updated_at"
    " digest_site_ids",
    "user_roles": "id user_id organization_id role created_at updated_at",
    "sites": "id organization_id name address city country latitude longitude created_at updated_at",
    "ttn_connections": "id organization_id application_id webhook_secret last_used_at created_at updated_at",
    "escalation_contacts": "id organization_id profile_id name phone email priority created_at updated_at",
    "areas": "id site_id name description sort_order created_at updated_at",
    "hubs": "id site_id name mac_address last_seen_at is_online created_at updated_at",
    "units": "id area_id name unit_type status temp_min temp_max temp_unit last_reading_at last_temperature"
    " is_active created_at updated_at",
    "devices": "id unit_id hub_id device_eui name status battery signal_strength last_seen_at created_at updated_at",
    "lora_sensors": "id device_id app_eui dev_eui app_key activation_type created_at updated_at",
    "alert_rules": "id organization_id site_id unit_id name temp_min temp_max alert_type severity schedule"
    " created_at updated_at",
    "sensor_readings": "id unit_id device_id temperature humidity battery signal_strength raw_payload recorded_at"
    " received_at source",
    "manual_temperature_logs": "id unit_id profile_id temperature humidity notes recorded_at created_at",
    "door_events": "id unit_id device_id state timestamp duration_seconds created_at",
    "alerts": "id unit_id alert_rule_id alert_type severity status message trigger_temperature triggered_at"
    " acknowledged_at acknowledged_by resolved_by metadata created_at updated_at",
    "alert_rules_history": "id alert_rule_id changed_by change_type old_values new_values changed_at",
    "calibration_records": "id device_id calibrated_at calibrated_by temperature_offset notes created_at updated_at",
    "pairing_sessions": "id device_id status pairing_code started_at expires_at metadata created_at updated_at",
    "corrective_actions": "id alert_id unit_id profile_id description action_taken resolved_alert action_at created_at",
    "notification_deliveries": "id alert_id profile_id channel recipient status error_message scheduled_at created_at",
    "event_logs": "id organization_id actor_id actor_type event_type entity_type entity_id description payload"
    " new_values previous_hash hash occurred_at",
}

_ROLES = ("owner", "admin", "manager", "staff", "viewer")
_UNIT_TYPES = ("fridge", "freezer", "display_case", "walk_in_cooler", "walk_in_freezer", "blast_chiller")
_ALERT_TYPES = (
    "alarm_active",
    "monitoring_interrupted",
    "missed_manual_entry",
    "low_battery",
    "sensor_fault",
    "door_open",
)
_SEVERITIES = ("info", "warning", "critical")
_ALERT_STATUSES = ("active", "acknowledged", "resolved", "escalated")
_PLANS = ("starter", "pro", "haccp", "enterprise")


class SampleRows:
    """One run of the generator. Children draw from the lists that their parents leave behind."""

    def __init__(self, rows: int, seed: int) -> None:
        """Plan about `rows` rows; nothing is made before `tables` is consumed, in its order."""
        self.rng = Random(seed)
        self.rows = rows
        self.made = 0
        self.deleted_users = [uuid4(self.rng) for _ in range(5)]
        self.users: list[str] = []
        self.members: list[tuple[str, str, str]] = []  # user, e-mail, organization
        self.profiles: list[tuple[str, str]] = []  # profile, organization
        self.organizations: list[str] = []
        self.sites: list[tuple[str, str]] = []  # site, organization
        self.areas: list[str] = []
        self.hubs: list[str] = []
        self.units: list[str] = []
        self.devices: list[tuple[str, str]] = []  # device, unit
        self.rules: list[str] = []
        self.alerts: list[tuple[str, str]] = []  # alert, unit

    def tables(self) -> Iterator[tuple[str, Iterator[Row]]]:
        """Table name and its rows in the order of `COLUMNS`; consume each before asking for the next."""
        structure: tuple[tuple[str, Callable[[], Iterator[Row]]], ...] = (
            ("organizations", self._organizations),
            ("auth.users", self._users),
            ("profiles", self._profiles),
            ("user_roles", self._user_roles),
            ("subscriptions", self._subscriptions),
            ("sites", self._sites),
            ("ttn_connections", self._ttn_connections),
            ("escalation_contacts", self._escalation_contacts),
            ("areas", self._areas),
            ("hubs", self._hubs),
            ("units", self._units),
            ("devices", self._devices),
            ("lora_sensors", self._lora_sensors),
            ("alert_rules", self._alert_rules),
        )
        # Share of all rows; sensor_readings takes what is left.
        events: tuple[tuple[str, float, Callable[[int], Iterator[Row]]], ...] = (
            ("door_events", 0.05, self._door_events),
            ("event_logs", 0.06, self._event_logs),
            ("alerts", 0.04, self._alerts),
            ("notification_deliveries", 0.04, self._notification_deliveries),
            ("manual_temperature_logs", 0.04, self._manual_temperature_logs),
            ("corrective_actions", 0.01, self._corrective_actions),
            ("alert_rules_history", 0.01, self._alert_rules_history),
            ("calibration_records", 0.01, self._calibration_records),
            ("pairing_sessions", 0.01, self._pairing_sessions),
        )
        for table, make in structure:
            yield table, self._counted(make())
        for table, share, make_many in events:
            yield table, self._counted(make_many(max(30, int(self.rows * share))))
        yield "sensor_readings", self._sensor_readings(max(100, self.rows - self.made))

    def _counted(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            self.made += 1
            yield row

    def _times(self) -> tuple[str, str]:
        """created_at and updated_at."""
        created, updated = sorted((moment(self.rng), moment(self.rng)))
        return created, updated

    # ── who ────────────────────────────────────────────────────────────────────────────────────────────

    def _organizations(self) -> Iterator[Row]:
        rng = self.rng
        for number in range(min(400, max(3, self.rows // 5_000))):
            organization = uuid4(rng)
            self.organizations.append(organization)
            name = text(rng, longest=256) if number % 5 == 0 else f"{values.person(rng)} Foods №{number}"
            mode = "haccp" if number % 3 == 0 else "standard"
            deleted = "infinity" if number % 50 == 7 else None
            yield (organization, name, f"org-{number}", "Europe/Berlin", mode, 10 + number, maybe(rng, text(rng)),
                   *self._times(), deleted)  # fmt: skip

    def _users(self) -> Iterator[Row]:
        """Of eight users seven belong to an organization, one has no password of bcrypt, one no e-mail."""
        rng = self.rng
        for number in range(len(self.organizations) * 8):
            user, kind = uuid4(rng), number % 8
            organization = None if kind == 7 else self.organizations[number // 8]
            email = None if kind == 6 else f"{'User' if kind == 5 else 'user'}.{number}+ft@example.com"
            phone = f"+1555{number:07d}" if kind == 6 and number % 16 == 6 else None
            password = values.argon2_hash(rng) if kind == 4 else values.bcrypt_hash(rng) if email else None
            self.users.append(user)
            if organization is not None:
                self.members.append((user, email or "", organization))
            profile = {"full_name": values.person(rng), "avatar_url": "https://example.com/a.png", "note": text(rng)}
            app = {"provider": "email", **({"organization_id": organization} if organization else {})}
            yield (user, email, phone, password, moment(rng) if email else None, json.dumps(profile),
                   json.dumps(app), maybe(rng, moment(rng), 0.03), kind == 3 and number % 16 == 3,
                   kind == 6 and phone is None, maybe(rng, moment(rng), 0.03), moment(rng))  # fmt: skip

    def _profiles(self) -> Iterator[Row]:
        rng = self.rng
        for user, email, organization in self.members:
            profile = uuid4(rng)
            self.profiles.append((profile, organization))
            name = maybe(rng, text(rng, longest=256) if rng.random() < 0.3 else values.person(rng), 0.9)
            sites = maybe(rng, json.dumps([uuid4(rng)]), 0.2)
            yield (profile, user, organization, email, name, maybe(rng, "https://example.com/a.png"),
                   maybe(rng, "+15550100"), rng.random() < 0.5, *self._times(), sites)  # fmt: skip

    def _user_roles(self) -> Iterator[Row]:
        for user, _, organization in self.members:
            yield uuid4(self.rng), user, organization, pick(self.rng, _ROLES), *self._times()

    def _subscriptions(self) -> Iterator[Row]:
        rng = self.rng
        for number, organization in enumerate(self.organizations):
            yield (uuid4(rng), organization, pick(rng, _PLANS), "active", maybe(rng, f"cus_{number}"),
                   maybe(rng, moment(rng)), *self._times())  # fmt: skip

    def _sites(self) -> Iterator[Row]:
        rng = self.rng
        for organization in self.organizations:
            for number in range(2):
                site = uuid4(rng)
                self.sites.append((site, organization))
                yield (site, organization, f"Site {number}", maybe(rng, text(rng)), maybe(rng, "Köln"),
                       maybe(rng, "DE"), maybe(rng, "50.9375"), maybe(rng, "6.9603"), *self._times())  # fmt: skip

    def _ttn_connections(self) -> Iterator[Row]:
        rng = self.rng
        for organization in self.organizations:
            yield (uuid4(rng), organization, maybe(rng, "app-1"), values.incompressible(rng, 64),
                   maybe(rng, moment(rng)), *self._times())  # fmt: skip

    def _escalation_contacts(self) -> Iterator[Row]:
        rng = self.rng
        for number, (profile, organization) in enumerate(self.profiles):
            if number % 3 == 0:
                yield (uuid4(rng), organization, maybe(rng, profile, 0.8), values.person(rng), "+15550100",
                       maybe(rng, text(rng, longest=256)), number % 4, *self._times())  # fmt: skip

    # ── where ──────────────────────────────────────────────────────────────────────────────────────────

    def _areas(self) -> Iterator[Row]:
        rng = self.rng
        for site, _ in self.sites:
            for number in range(2):
                area = uuid4(rng)
                self.areas.append(area)
                yield area, site, f"Area {number}", maybe(rng, text(rng)), number, *self._times()

    def _hubs(self) -> Iterator[Row]:
        rng = self.rng
        for number, (site, _) in enumerate(self.sites):
            hub = uuid4(rng)
            self.hubs.append(hub)
            address = maybe(rng, ":".join(f"{byte:02x}" for byte in number.to_bytes(6, "big")), 0.9)
            yield hub, site, f"Hub {number}", address, maybe(rng, moment(rng)), rng.random() < 0.9, *self._times()

    def _units(self) -> Iterator[Row]:
        rng = self.rng
        for area in self.areas:
            for number in range(3):
                unit = uuid4(rng)
                self.units.append(unit)
                name = text(rng, longest=256) if rng.random() < 0.1 else f"Unit {number}"
                yield (unit, area, name, pick(rng, _UNIT_TYPES), "ok", rng.randrange(-400, 300), 410, "F",
                       maybe(rng, moment(rng)), maybe(rng, rng.randrange(-400, 500)), rng.random() < 0.95,
                       *self._times())  # fmt: skip

    def _devices(self) -> Iterator[Row]:
        rng = self.rng
        for number, unit in enumerate(self.units):
            device = uuid4(rng)
            self.devices.append((device, unit))
            signal = pick(rng, ("-2147483648", "2147483647", "-87", "0"))
            yield (device, maybe(rng, unit, 0.95), maybe(rng, pick(rng, self.hubs), 0.7), f"{number:016X}",
                   maybe(rng, text(rng, longest=256)), "active", maybe(rng, rng.randrange(101)), signal,
                   maybe(rng, moment(rng)), *self._times())  # fmt: skip

    def _lora_sensors(self) -> Iterator[Row]:
        rng = self.rng
        for number, (device, _) in enumerate(self.devices):
            if number % 2 == 0:
                yield (uuid4(rng), device, "70B3D57ED0000000", f"{number:016X}",
                       maybe(rng, f"{rng.getrandbits(128):032X}"), maybe(rng, "OTAA", 0.9), *self._times())  # fmt: skip

    def _alert_rules(self) -> Iterator[Row]:
        rng = self.rng
        for unit in self.units:
            rule = uuid4(rng)
            self.rules.append(rule)
            site, organization = rng.choice(self.sites)
            yield (rule, organization, maybe(rng, site), maybe(rng, unit, 0.8), "Rule", maybe(rng, -400),
                   maybe(rng, 410), pick(rng, _ALERT_TYPES), pick(rng, _SEVERITIES),
                   maybe(rng, values.odd_json(rng), 0.3), *self._times())  # fmt: skip

    # ── what happened ──────────────────────────────────────────────────────────────────────────────────

    def _door_events(self, count: int) -> Iterator[Row]:
        rng = self.rng
        for number in range(count):
            device, unit = self.devices[number % len(self.devices)]
            yield (uuid4(rng), unit, maybe(rng, device, 0.9), "open" if number % 2 else "closed", moment(rng),
                   maybe(rng, number), moment(rng))  # fmt: skip

    def _event_logs(self, count: int) -> Iterator[Row]:
        """Chained by hash within each organization; three payloads are stored out of line."""
        rng = self.rng
        previous: dict[str, str] = {}
        for number in range(count):
            event = uuid4(rng)
            profile, organization = rng.choice(self.profiles)
            payload = self._long_text(number) or maybe(rng, values.odd_json(rng, note=text(rng)), 0.9)
            before = previous.get(organization)
            digest = event_hash(event, payload, before)
            previous[organization] = digest
            yield (event, organization, maybe(rng, profile, 0.8), "user", "temperature.logged", "unit",
                   maybe(rng, pick(rng, self.units)), maybe(rng, text(rng)), payload, maybe(rng, text(rng), 0.3),
                   before, digest, moment(rng))  # fmt: skip

    def _alerts(self, count: int) -> Iterator[Row]:
        rng = self.rng
        for number in range(count):
            alert, unit = uuid4(rng), pick(rng, self.units)
            self.alerts.append((alert, unit))
            metadata = self._long_text(number) or maybe(rng, values.odd_json(rng, reading=number))
            if number % 40 == 3:
                metadata = values.incompressible(rng, rng.randrange(3_000, 10_000))
            yield (alert, unit, maybe(rng, pick(rng, self.rules), 0.7), pick(rng, _ALERT_TYPES),
                   pick(rng, _SEVERITIES), pick(rng, _ALERT_STATUSES), maybe(rng, text(rng)),
                   maybe(rng, rng.randrange(-400, 900)), moment(rng),
                   maybe(rng, moment(rng)), maybe(rng, self._profile(), 0.3), maybe(rng, self._profile(), 0.3),
                   metadata, *self._times())  # fmt: skip

    def _notification_deliveries(self, count: int) -> Iterator[Row]:
        rng = self.rng
        for number in range(count):
            recipient = text(rng, longest=256) if number % 20 == 0 else "user@example.com"
            yield (uuid4(rng), rng.choice(self.alerts)[0], maybe(rng, self._profile()),
                   pick(rng, ("push", "email", "sms")), recipient, "sent", maybe(rng, text(rng), 0.1),
                   *self._times())  # fmt: skip

    def _manual_temperature_logs(self, count: int) -> Iterator[Row]:
        rng = self.rng
        for number in range(count):
            temperature = (
                values.BITING_TEMPERATURES[number % 8] if number < 16 else f"{rng.randrange(-4000, 9000) / 100}"
            )
            yield (uuid4(rng), pick(rng, self.units), maybe(rng, self._profile(), 0.9), temperature,
                   maybe(rng, "NaN" if number % 30 == 0 else "55.50"), maybe(rng, text(rng)), moment(rng),
                   moment(rng))  # fmt: skip

    def _corrective_actions(self, count: int) -> Iterator[Row]:
        rng = self.rng
        for _ in range(count):
            alert, unit = rng.choice(self.alerts)
            yield (uuid4(rng), alert, unit, maybe(rng, self._profile(), 0.8), text(rng), maybe(rng, text(rng)),
                   rng.random() < 0.5, *self._times())  # fmt: skip

    def _alert_rules_history(self, count: int) -> Iterator[Row]:
        rng = self.rng
        for number in range(count):
            old, new = values.odd_json(rng, temp_max=number), values.odd_json(rng, temp_max=text(rng))
            yield (uuid4(rng), pick(rng, self.rules), self._user(number), "update", maybe(rng, old), new, moment(rng))

    def _calibration_records(self, count: int) -> Iterator[Row]:
        rng = self.rng
        for number in range(count):
            yield (uuid4(rng), rng.choice(self.devices)[0], moment(rng), self._user(number), maybe(rng, -32),
                   maybe(rng, text(rng)), *self._times())  # fmt: skip

    def _pairing_sessions(self, count: int) -> Iterator[Row]:
        rng = self.rng
        for number in range(count):
            expires = "infinity" if number % 10 == 0 else moment(rng)
            yield (uuid4(rng), maybe(rng, rng.choice(self.devices)[0], 0.9), "pending", f"{number:06d}", moment(rng),
                   expires, maybe(rng, values.odd_json(rng)), *self._times())  # fmt: skip

    def _sensor_readings(self, count: int) -> Iterator[Row]:
        """Most rows of all, hence plain; every 997th bites."""
        rng, devices = self.rng, self.devices
        edges = values.BITING_TIMES
        for number in range(count):
            device, unit = devices[int(rng.random() * len(devices))]
            recorded = moment(rng)
            temperature, raw = f"{rng.randrange(-4000, 9000) / 100}", None
            if number < len(edges) or number % 997 == 0:
                recorded = edges[number % len(edges)]
                temperature = values.BITING_TEMPERATURES[number % len(values.BITING_TEMPERATURES)]
                raw = text(rng)
            elif number & 3 == 0:
                raw = f'{{"t":{temperature}}}'
            yield (uuid4(rng), unit, device if number & 15 else None, temperature, "55.50" if number & 1 else None,
                   number % 101, -number % 120, raw, recorded, moment(rng), "lora" if number & 7 else "")  # fmt: skip

    def _profile(self) -> str:
        return self.profiles[int(self.rng.random() * len(self.profiles))][0]

    def _user(self, number: int) -> str | None:
        """A user ID without foreign key: mostly of members, some deleted, some NULL."""
        if number % 10 == 3:
            return self.deleted_users[number % len(self.deleted_users)]
        return maybe(self.rng, self.rng.choice(self.members)[0], 0.9)

    def _long_text(self, number: int) -> str | None:
        """For the first rows: a megabyte that compresses, and two that do not."""
        if number == 0:
            return "ice 🧊 " * (_BIG // 6)
        return values.incompressible(self.rng, _BIG) if number in (1, 2) else None


def event_hash(event: str, payload: str | None, previous: str | None) -> str:
    """The link of event_logs' hash chain: SHA-256 over id, payload and the previous hash."""
    return hashlib.sha256(f"{event}{payload or ''}{previous or ''}".encode()).hexdigest()
