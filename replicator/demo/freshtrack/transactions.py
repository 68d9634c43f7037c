"""The transactions of the live writers: what an application does, and what tends to break replicators."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, LiteralString

import psycopg

from replicator.demo.freshtrack import values
from replicator.demo.freshtrack.inserts import MEMBERS, SIGN_UPS, TREES, Inserts, Transaction
from replicator.demo.freshtrack.rows import event_hash
from replicator.demo.freshtrack.values import maybe, moment, pick, text, uuid4


class Transactions(Inserts):
    """One writer's transactions, chosen by weight."""

    def __init__(self, rng: Random, conn: psycopg.Connection[Any], *, extras: bool, lookup_churn: bool) -> None:
        """`lookup_churn`: see `Workload`."""
        super().__init__(rng, conn)
        self.lookup_churn = lookup_churn
        self.removable_units = 3
        weighted = self._weighted() + (self._weighted_extras() if extras else [])
        self._makers = [make for make, _ in weighted]
        self._weights = [weight for _, weight in weighted]

    def choose(self) -> Callable[[Transaction], None]:
        """The next transaction, by weight."""
        return self.rng.choices(self._makers, self._weights)[0]

    def _weighted(self) -> list[tuple[Callable[[Transaction], None], float]]:
        return [
            (self.readings, 20),
            (self.move_readings, 8),
            (self.many_readings, 0.3),
            (self.unit_status, 10),
            (self.change_beside_long_values, 10),
            (self.change_long_values, 6),
            (self.null_and_back, 6),
            (self.delete_leaves, 6),
            (self.change_keys, 5),
            (self.swap_keys, 2),
            (self.swap_unique_values, 3),
            (self.replace_unique_value, 2),
            (self.insert_delete_insert, 4),
            (self.incident, 8),
            (self.savepoint, 4),
            (self.roll_back, 4),
            (self.truncate, 0.5),
            (self.sign_up, 4),
            (self.delete_person, 2),
            (self.user_columns, 5),
            (self.tree, 2),
            (self.delete_tree, 1),
            (self.delete_unit, 0.3),
        ]

    def _weighted_extras(self) -> list[tuple[Callable[[Transaction], None], float]]:
        return [(self.invoices, 4), (self.tickets, 8), (self.append, 5)]

    # ── readings ───────────────────────────────────────────────────────────────────────────────────────

    def readings(self, tx: Transaction) -> None:
        """A burst of readings."""
        self.insert_readings(tx, self.rng.randrange(3, 40))

    def many_readings(self, tx: Transaction) -> None:
        """One large transaction."""
        self.insert_readings(tx, 2_000)

    def move_readings(self, tx: Transaction) -> None:
        """recorded_at changes: on the target the row moves to another partition, and its key changes."""
        for _ in range(self.rng.randrange(1, 6)):
            recorded = self.recorded()
            query: LiteralString = "UPDATE public.sensor_readings SET recorded_at = %s WHERE id = %s"
            tx.run("update", query, recorded, self.key("sensor_readings"))

    def unit_status(self, tx: Transaction) -> None:
        """One hot row, several times in a transaction."""
        unit = self.key("units")
        for _ in range(self.rng.randrange(1, 4)):
            tx.run(
                "update",
                "UPDATE public.units SET status = %s, last_temperature = %s, last_reading_at = %s WHERE id = %s",
                pick(self.rng, ("ok", "excursion", "offline")),
                maybe(self.rng, self.rng.randrange(-400, 900), 0.9),
                moment(self.rng),
                unit,
            )

    # ── long values and NULL ───────────────────────────────────────────────────────────────────────────

    def change_beside_long_values(self, tx: Transaction) -> None:
        """A small column changes: the long value beside it is not sent."""
        tx.run(
            "update",
            "UPDATE public.alerts SET status = %s, escalation_level = escalation_level + 1 WHERE id = %s",
            pick(self.rng, ("active", "acknowledged", "resolved")),
            self.key("alerts", first=40),
        )
        tx.run(
            "update",
            "UPDATE public.event_logs SET description = %s WHERE id = %s",
            maybe(self.rng, text(self.rng), 0.8),
            self.key("event_logs", first=10),
        )

    def change_long_values(self, tx: Transaction) -> None:
        """A long value becomes another one, short, empty or NULL; twice, at times, with a small change between."""
        alert = self.key("alerts", first=40)
        query: LiteralString = "UPDATE public.alerts SET metadata = %s WHERE id = %s"
        tx.run("update", query, self.long(), alert)
        if self.rng.random() < 0.5:
            tx.run("update", "UPDATE public.alerts SET message = %s WHERE id = %s", text(self.rng), alert)
            tx.run("update", query, maybe(self.rng, self.long(), 0.7), alert)
        tx.run(
            "update",
            "UPDATE public.pairing_sessions SET metadata = %s WHERE id = %s",
            self.long(),
            self.key("pairing_sessions"),
        )

    def null_and_back(self, tx: Transaction) -> None:
        """NULL to a value and a value to NULL."""
        rng = self.rng
        tx.run(
            "update",
            "UPDATE public.profiles SET phone = %s, full_name = %s WHERE id = %s",
            maybe(rng, "+15550111"),
            maybe(rng, text(rng, longest=256)),
            self.key("profiles"),
        )
        tx.run(
            "update",
            "UPDATE public.manual_temperature_logs SET humidity = %s, notes = %s, temperature = %s WHERE id = %s",
            maybe(rng, "NaN"),
            maybe(rng, text(rng)),
            pick(rng, ("NaN", "-0.00", "3.20")),
            self.key("manual_temperature_logs"),
        )
        # No trigger here: nothing changes at all, and the change is sent all the same.
        tx.run("update", "UPDATE public.door_events SET state = state WHERE id = %s", self.key("door_events"))

    # ── keys and unique values ─────────────────────────────────────────────────────────────────────────

    def delete_leaves(self, tx: Transaction) -> None:
        """Rows that nothing references."""
        tx.run("delete", "DELETE FROM public.sensor_readings WHERE id = %s", self.take("sensor_readings"))
        tx.run("delete", "DELETE FROM public.door_events WHERE id = %s", self.take("door_events"))
        tx.run(
            "delete", "DELETE FROM public.notification_deliveries WHERE id = %s", self.take("notification_deliveries")
        )

    def change_keys(self, tx: Transaction) -> None:
        """Primary keys change, once or twice; for pairing sessions with a long value that is not sent."""
        chains: tuple[tuple[str, LiteralString], ...] = (
            ("door_events", "UPDATE public.door_events SET id = %s WHERE id = %s"),
            ("notification_deliveries", "UPDATE public.notification_deliveries SET id = %s WHERE id = %s"),
            ("sensor_readings", "UPDATE public.sensor_readings SET id = %s WHERE id = %s"),
            ("pairing_sessions", "UPDATE public.pairing_sessions SET id = %s WHERE id = %s"),
        )
        table, query = self.rng.choice(chains)
        key = self.take(table)
        for _ in range(self.rng.randrange(1, 3)):
            new = uuid4(self.rng)
            tx.run("key change", query, new, key)
            key = new
        self.remember(table, key)

    def swap_keys(self, tx: Transaction) -> None:
        """Two rows exchange their primary keys by way of a third."""
        first, second, spare = self.key("door_events"), self.key("door_events"), uuid4(self.rng)
        query: LiteralString = "UPDATE public.door_events SET id = %s WHERE id = %s"
        for new, old in ((spare, first), (first, second), (second, spare)):
            tx.run("key change", query, new, old)

    def swap_unique_values(self, tx: Transaction) -> None:
        """Two rows exchange a unique value: no order of the net changes is free of a collision."""
        swaps: tuple[tuple[str, LiteralString, LiteralString], ...] = (
            (
                "lora_sensors",
                "SELECT dev_eui FROM public.lora_sensors WHERE id = %s FOR UPDATE",
                "UPDATE public.lora_sensors SET dev_eui = %s WHERE id = %s",
            ),
            (
                "hubs",
                "SELECT mac_address FROM public.hubs WHERE id = %s FOR UPDATE",
                "UPDATE public.hubs SET mac_address = %s WHERE id = %s",
            ),
        )
        table, select, update = self.rng.choice(swaps)
        keys = sorted({self.key(table), self.key(table)})  # locked in one order by all writers
        found = [tx.conn.execute(select, [key]).fetchone() for key in keys]
        if len(keys) == 2 and all(found):
            a, b = (row[0] for row in found if row is not None)
            tx.run("update", update, f"swap{self.rng.getrandbits(48):012x}", keys[0])
            tx.run("update", update, a, keys[1])
            tx.run("update", update, b, keys[0])

    def replace_unique_value(self, tx: Transaction) -> None:
        """A row goes and another takes its unique value."""
        eui = f"W{self.rng.getrandbits(60):015X}"
        query: LiteralString = "INSERT INTO public.devices (id, unit_id, device_eui, name) VALUES (%s, %s, %s, %s)"
        first, second = uuid4(self.rng), uuid4(self.rng)
        tx.run("insert", query, first, self.key("units"), eui, text(self.rng, longest=256))
        tx.run("delete", "DELETE FROM public.devices WHERE id = %s", first)
        tx.run("insert", query, second, None, eui, None)
        self.remember("devices", second)

    def insert_delete_insert(self, tx: Transaction) -> None:
        """One key lives twice within a transaction."""
        key = uuid4(self.rng)
        self.insert_door(tx, key)
        tx.run("delete", "DELETE FROM public.door_events WHERE id = %s", key)
        if self.rng.random() < 0.7:
            self.insert_door(tx, key)
        existing = self.key("door_events")
        if tx.run("delete", "DELETE FROM public.door_events WHERE id = %s", existing):
            self.insert_door(tx, existing)

    # ── transactions over several tables ───────────────────────────────────────────────────────────────

    def incident(self, tx: Transaction) -> None:
        """Alert, notification, corrective action and log entry; at times the alert goes and cascades."""
        rng = self.rng
        alert, unit, profile = uuid4(rng), self.key("units"), maybe(rng, self.key("profiles"), 0.8)
        tx.run(
            "insert",
            "INSERT INTO public.alerts (id, unit_id, alert_rule_id, alert_type, severity, message, metadata)"
            " VALUES (%s, %s, %s, 'door_open', 'warning', %s, %s)",
            alert, unit, self.key("alert_rules"), text(rng), maybe(rng, self.long()),
        )  # fmt: skip
        tx.run(
            "insert",
            "INSERT INTO public.notification_deliveries (id, alert_id, profile_id, channel, recipient)"
            " VALUES (%s, %s, %s, 'sms', %s)",
            uuid4(rng), alert, profile, text(rng, longest=256),
        )  # fmt: skip
        tx.run(
            "insert",
            "INSERT INTO public.corrective_actions (id, alert_id, unit_id, profile_id, description)"
            " VALUES (%s, %s, %s, %s, %s)",
            uuid4(rng), alert, unit, profile, text(rng),
        )  # fmt: skip
        event, payload = uuid4(rng), values.odd_json(rng, note=text(rng))
        tx.run(
            "insert",
            "INSERT INTO public.event_logs (id, organization_id, actor_id, actor_type, event_type, entity_type,"
            " entity_id, payload, hash) VALUES (%s, %s, %s, 'user', 'alert.opened', 'alert', %s, %s, %s)",
            event, self.key("organizations"), profile, alert, payload, event_hash(event, payload, None),
        )  # fmt: skip
        if rng.random() < 0.2:
            tx.run("delete", "DELETE FROM public.alerts WHERE id = %s", alert)
        else:
            self.remember("alerts", alert)

    def savepoint(self, tx: Transaction) -> None:
        """Part of the transaction is taken back."""
        self.insert_readings(tx, 3)
        before = Counter(tx.changes)
        with tx.conn.transaction() as inner:
            self.insert_readings(tx, 5)
            tx.run("delete", "DELETE FROM public.door_events WHERE id = %s", self.key("door_events"))
            if self.rng.random() < 0.7:
                tx.changes = before
                raise psycopg.Rollback(inner)
        self.insert_door(tx, uuid4(self.rng))

    def roll_back(self, tx: Transaction) -> None:
        """All of it is taken back."""
        self.incident(tx)
        self.insert_readings(tx, 20)
        tx.changes.clear()
        raise psycopg.Rollback

    def truncate(self, tx: Transaction) -> None:
        """One or two leaf tables are emptied, and filled again in the same transaction."""
        choices: tuple[tuple[LiteralString, tuple[str, ...]], ...] = (
            ("TRUNCATE public.door_events", ("door_events",)),
            ("TRUNCATE public.pairing_sessions", ("pairing_sessions",)),
            ("TRUNCATE public.door_events, public.pairing_sessions", ("door_events", "pairing_sessions")),
        )
        self.insert_door(tx, uuid4(self.rng))
        query, tables = self.rng.choice(choices)
        tx.conn.execute(query)
        tx.changes["truncate"] += 1
        for table in tables:
            self.pool[table].clear()
        for _ in range(30):
            self.insert_door(tx, uuid4(self.rng))
            self.insert_pairing(tx)

    def tree(self, tx: Transaction) -> None:
        """A new organization with all below it."""
        rng = self.rng
        organization, site, area, unit, device = (uuid4(rng) for _ in range(5))
        rows: tuple[tuple[LiteralString, tuple[object, ...]], ...] = (
            ("INSERT INTO public.organizations (id, name, slug) VALUES (%s, %s, %s)",
             (organization, text(rng, longest=256), organization)),
            ("INSERT INTO public.sites (id, organization_id, name) VALUES (%s, %s, 'Site')", (site, organization)),
            ("INSERT INTO public.areas (id, site_id, name) VALUES (%s, %s, 'Area')", (area, site)),
            ("INSERT INTO public.units (id, area_id, name, unit_type, temp_min, temp_max)"
             " VALUES (%s, %s, 'Unit', 'fridge', -10, 40)", (unit, area)),
            ("INSERT INTO public.devices (id, unit_id, device_eui) VALUES (%s, %s, %s)", (device, unit, device[:32])),
            ("INSERT INTO public.alert_rules (organization_id, unit_id, name) VALUES (%s, %s, 'Rule')",
             (organization, unit)),
        )  # fmt: skip
        for query, parameters in rows:
            tx.run("insert", query, *parameters)
        self.copy_readings(tx, [self.reading(unit, device) for _ in range(10)])
        self.pool[TREES].append(organization)

    def delete_tree(self, tx: Transaction) -> None:
        """An organization goes, and everything below it by cascade."""
        if self.pool[TREES]:
            tx.run("delete", "DELETE FROM public.organizations WHERE id = %s", self.take(TREES))

    def delete_unit(self, tx: Transaction) -> None:
        """A unit that was there from the start goes, with all its readings; a few times at most."""
        if self.removable_units and len(self.pool["units"]) > 10:
            self.removable_units -= 1
            tx.run("delete", "DELETE FROM public.units WHERE id = %s", self.take("units"))

    # ── people ─────────────────────────────────────────────────────────────────────────────────────────

    def sign_up(self, tx: Transaction) -> None:
        """A new user: a trigger makes profile and role. No map knows the user yet."""
        rng = self.rng
        user = uuid4(rng)
        tx.run(
            "insert",
            "INSERT INTO auth.users (id, email, encrypted_password, raw_user_meta_data, raw_app_meta_data)"
            " VALUES (%s, %s, %s, %s, %s)",
            user, f"new-{user}@example.com", values.bcrypt_hash(rng), json.dumps({"full_name": values.person(rng)}),
            json.dumps({"organization_id": self.key("organizations"), "role": "staff"}),
        )  # fmt: skip
        if rng.random() < 0.5:
            tx.run("update", "UPDATE public.profiles SET phone = '+15550122' WHERE user_id = %s", user)
        self.pool[SIGN_UPS].append(user)

    def delete_person(self, tx: Transaction) -> None:
        """A user or only the profile goes; a profile's contacts go with it, its other traces become NULL."""
        pool = MEMBERS if self.lookup_churn and self.rng.random() < 0.3 else SIGN_UPS
        if not self.pool[pool]:
            return
        user = self.take(pool)
        if self.rng.random() < 0.5:
            tx.run("delete", "DELETE FROM auth.users WHERE id = %s", user)
        else:
            tx.run("delete", "DELETE FROM public.profiles WHERE user_id = %s", user)

    def user_columns(self, tx: Transaction) -> None:
        """Columns that hold user IDs without a foreign key: of members, of deleted users, NULL."""
        rng = self.rng
        record = uuid4(rng)
        tx.run(
            "insert",
            "INSERT INTO public.calibration_records (id, device_id, calibrated_at, calibrated_by, notes)"
            " VALUES (%s, %s, %s, %s, %s)",
            record, self.key("devices"), moment(rng), self.user(), maybe(rng, text(rng)),
        )  # fmt: skip
        self.remember("calibration_records", record)
        tx.run(
            "insert",
            "INSERT INTO public.alert_rules_history (id, alert_rule_id, changed_by, change_type, new_values)"
            " VALUES (%s, %s, %s, 'update', %s)",
            uuid4(rng), self.key("alert_rules"), self.user(), values.odd_json(rng),
        )  # fmt: skip
        query: LiteralString = "UPDATE public.calibration_records SET calibrated_by = %s WHERE id = %s"
        tx.run("update", query, self.user(), self.key("calibration_records"))

    # ── extras ─────────────────────────────────────────────────────────────────────────────────────────

    def invoices(self, tx: Transaction) -> None:
        """Keys from an identity column; some numbers are lost to a rollback."""
        tx.run("insert", "INSERT INTO public.invoice_numbers (reference) VALUES (%s)", text(self.rng))
        if self.rng.random() < 0.2:
            tx.changes.clear()
            raise psycopg.Rollback

    def tickets(self, tx: Transaction) -> None:
        """Keys from a sequence; payloads long and short."""
        rng = self.rng
        tx.run("insert", "INSERT INTO public.tickets (payload) VALUES (%s)", maybe(rng, self.long()))
        number = rng.randrange(1, 500)
        tx.run("update", "UPDATE public.tickets SET updated_at = %s WHERE id = %s", moment(rng), number)
        if rng.random() < 0.2:
            tx.run("delete", "DELETE FROM public.tickets WHERE id = %s", rng.randrange(1, 500))

    def append(self, tx: Transaction) -> None:
        """Rows without a key, some of them equal."""
        rng = self.rng
        rows = [(rng.randrange(20), text(rng)) for _ in range(3)]
        tx.copy("insert", "COPY public.append_log (n, text) FROM STDIN", [*rows, rows[0]])
