"""What the writers' transactions are made of: keys to draw rows by, and inserts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from replicator.demo.freshtrack import values
from replicator.demo.freshtrack.values import maybe, moment, pick, text, uuid4

_POOL = 2_000  # keys remembered per table
MEMBERS = "members"  # pool of the users that had a profile at the start
SIGN_UPS = "sign-ups"  # pool of users that this writer has made
TREES = "trees"  # pool of organizations that this writer has made

_POOLS: dict[str, LiteralString] = {
    "organizations": "SELECT id::text FROM public.organizations ORDER BY id LIMIT %s",
    "units": "SELECT id::text FROM public.units ORDER BY id LIMIT %s",
    "devices": "SELECT id::text FROM public.devices ORDER BY id LIMIT %s",
    "hubs": "SELECT id::text FROM public.hubs ORDER BY id LIMIT %s",
    "lora_sensors": "SELECT id::text FROM public.lora_sensors ORDER BY id LIMIT %s",
    "alert_rules": "SELECT id::text FROM public.alert_rules ORDER BY id LIMIT %s",
    "profiles": "SELECT id::text FROM public.profiles ORDER BY id LIMIT %s",
    MEMBERS: "SELECT user_id::text FROM public.profiles ORDER BY id LIMIT %s",
    "sensor_readings": "SELECT id::text FROM public.sensor_readings ORDER BY id LIMIT %s",
    "door_events": "SELECT id::text FROM public.door_events ORDER BY id LIMIT %s",
    "alerts": "SELECT id::text FROM public.alerts ORDER BY length(metadata) DESC NULLS LAST, id LIMIT %s",
    "event_logs": "SELECT id::text FROM public.event_logs ORDER BY length(payload) DESC NULLS LAST, id LIMIT %s",
    "pairing_sessions": "SELECT id::text FROM public.pairing_sessions ORDER BY id LIMIT %s",
    "notification_deliveries": "SELECT id::text FROM public.notification_deliveries ORDER BY id LIMIT %s",
    "calibration_records": "SELECT id::text FROM public.calibration_records ORDER BY id LIMIT %s",
    "manual_temperature_logs": "SELECT id::text FROM public.manual_temperature_logs ORDER BY id LIMIT %s",
}

_COPY_READINGS: LiteralString = (
    "COPY public.sensor_readings (id, unit_id, device_id, temperature, humidity, battery, raw_payload,"
    " recorded_at, received_at, source) FROM STDIN"
)
_INSERT_DOOR: LiteralString = (
    "INSERT INTO public.door_events (id, unit_id, device_id, state, timestamp, duration_seconds)"
    " VALUES (%s, %s, %s, %s, %s, %s)"
)
# Tables that others reference: their rows may be gone when a writer names them.
PARENTS = ("organizations", "units", "devices", "alert_rules", "profiles")


class Transaction:
    """An open transaction that counts what it changes: kind → rows."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn
        self.changes: Counter[str] = Counter()

    def run(self, kind: str, query: LiteralString, *parameters: object) -> int:
        """Execute and count the rows as `kind`; returns how many."""
        rows = max(0, self.conn.execute(query, parameters).rowcount)
        self.changes[kind] += rows
        return rows

    def copy(self, kind: str, statement: LiteralString, rows: Iterable[tuple[object, ...]]) -> None:
        """COPY rows in and count them as `kind`."""
        with self.conn.cursor() as cursor:
            with cursor.copy(statement) as copy:
                for row in rows:
                    copy.write_row(row)
            self.changes[kind] += cursor.rowcount


class Inserts:
    """Pools of keys, filled once from the database, and the rows that a writer adds."""

    def __init__(self, rng: Random, conn: psycopg.Connection[Any]) -> None:
        self.rng = rng
        self.pool: dict[str, list[str]] = {
            table: [key for (key,) in conn.execute(query, [_POOL]).fetchall()] for table, query in _POOLS.items()
        }
        self.pool |= {SIGN_UPS: [], TREES: []}

    def forget_missing(self, conn: psycopg.Connection[Any], tables: Iterable[str] = tuple(_POOLS)) -> None:
        """Drop the keys of rows that are gone, by other writers' doing or by cascade."""
        for table in tables:
            if table == MEMBERS:
                continue  # users, not rows: those deleted are wanted
            query = sql.SQL("SELECT id::text FROM {} WHERE id = ANY (%s::uuid[])").format(
                sql.Identifier("public", table)
            )
            present = {key for (key,) in conn.execute(query, [self.pool[table]]).fetchall()}
            self.pool[table] = [key for key in self.pool[table] if key in present]

    def insert_readings(self, tx: Transaction, count: int) -> None:
        """Readings of one unit and device."""
        unit, device = self.key("units"), maybe(self.rng, self.key("devices"), 0.9)
        rows = [self.reading(unit, device) for _ in range(count)]
        self.copy_readings(tx, rows)
        self.remember("sensor_readings", str(rows[0][0]))

    def copy_readings(self, tx: Transaction, rows: Iterable[tuple[object, ...]]) -> None:
        """COPY rows of `reading` in."""
        tx.copy("insert", _COPY_READINGS, rows)

    def reading(self, unit: str, device: str | None) -> tuple[object, ...]:
        """One row for `copy_readings`."""
        rng = self.rng
        temperature = (
            pick(rng, values.BITING_TEMPERATURES) if rng.random() < 0.05 else f"{rng.randrange(-4000, 9000) / 100}"
        )
        return (
            uuid4(rng), unit, device, temperature, maybe(rng, "55.50"), rng.randrange(101),
            maybe(rng, text(rng), 0.2), self.recorded(), moment(rng), maybe(rng, "lora"),
        )  # fmt: skip

    def recorded(self) -> str:
        """A time, outside the monthly partitions now and then."""
        return pick(self.rng, values.BITING_TIMES) if self.rng.random() < 0.05 else moment(self.rng)

    def insert_door(self, tx: Transaction, key: str) -> None:
        """A door event with this key."""
        rng = self.rng
        state, device = pick(rng, ("open", "closed")), maybe(rng, self.key("devices"))
        tx.run("insert", _INSERT_DOOR, key, self.key("units"), device, state, moment(rng), maybe(rng, 5))
        self.remember("door_events", key)

    def insert_pairing(self, tx: Transaction) -> None:
        """A pairing session, half of them with a long value."""
        key = uuid4(self.rng)
        tx.run(
            "insert",
            "INSERT INTO public.pairing_sessions (id, device_id, pairing_code, expires_at, metadata)"
            " VALUES (%s, %s, %s, 'infinity', %s)",
            key, self.key("devices"), key[:6], maybe(self.rng, self.long(), 0.5),
        )  # fmt: skip
        self.remember("pairing_sessions", key)

    def long(self) -> str:
        """A value for a long column: mostly one that is stored out of line."""
        if self.rng.random() < 0.3:
            return text(self.rng)
        return values.incompressible(self.rng, self.rng.randrange(2_500, 20_000))

    def user(self) -> str | None:
        """A user ID: of a member, of a deleted user, or NULL."""
        chance = self.rng.random()
        if chance < 0.1:
            return None
        return uuid4(self.rng) if chance < 0.2 else self.key(MEMBERS)

    def key(self, pool: str, first: int | None = None) -> str:
        """A key of the pool, or of its `first`; of a row that is gone, at times."""
        keys = self.pool[pool]
        return keys[self.rng.randrange(min(len(keys), first or len(keys)))] if keys else uuid4(self.rng)

    def take(self, pool: str) -> str:
        """A key that is not drawn again."""
        keys = self.pool[pool]
        return keys.pop(self.rng.randrange(len(keys))) if keys else uuid4(self.rng)

    def remember(self, pool: str, key: str) -> None:
        """Let a key be drawn from now on."""
        keys = self.pool[pool]
        if len(keys) < _POOL:
            keys.append(key)
        else:
            keys[self.rng.randrange(len(keys))] = key
