"""A source, a target and their settings, as the snapshot's tests need them."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from replicator.config import Settings
from replicator.demo.freshtrack import generate, settings_toml, source_schema, target_schema, write_map_file
from replicator.postgres.connection import Connection, connect
from replicator.routes import require_routes
from replicator.routing.route import Route
from replicator.target import state
from snapshot.run import recopy, run_snapshot


@dataclass
class Case:
    """``slot``: slots belong to the whole server, which other tests share."""

    source_dsn: str
    target_dsn: str
    settings: Settings
    map_file: Path | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def slot(self) -> str:
        return self.settings.source.slot

    def execute(self, side: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        dsn = self.source_dsn if side == "source" else self.target_dsn
        with psycopg.connect(dsn, autocommit=True) as conn:
            cursor = conn.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, side: str, statement: str, *parameters: object) -> Any:
        [(value,)] = self.execute(side, statement, *parameters)
        return value

    @contextmanager
    def sessions(self) -> Iterator[tuple[Connection, Connection, list[Route]]]:
        with (
            connect(self.settings.target.dsn, "target", purpose="test") as writer,
            connect(self.settings.source.dsn, "source", purpose="test") as source,
        ):
            state.migrate(writer)
            state.lock_writer(writer, self.slot)
            yield writer, source, require_routes(self.settings, source, writer)

    def run(self, **options: Any) -> bool:
        with self.sessions() as (writer, source, routes):
            return run_snapshot(self.settings, routes, writer=writer, source=source, stop=self.stop, **options)

    def recopy(self, names: list[str], **options: Any) -> bool:
        wanted = [("public", name) for name in names]
        with self.sessions() as (writer, source, routes):
            return recopy(self.settings, routes, wanted, writer=writer, source=source, stop=self.stop, **options)

    def phase(self) -> str | None:
        if not self.value("target", "SELECT to_regclass('replicator.checkpoint') IS NOT NULL"):
            return None
        found = self.execute("target", "SELECT phase FROM replicator.checkpoint WHERE slot = %s", self.slot)
        return found[0][0] if found else None

    def table_states(self) -> dict[str, str]:
        return dict(self.execute("target", "SELECT table_name, state FROM replicator.table_state"))

    def attempts(self) -> list[int]:
        if self.phase() is None:
            return []
        return [attempt for (attempt,) in self.execute("target", "SELECT attempt FROM replicator.table_state")]

    def slot_exists(self) -> bool:
        return self.value("source", "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", self.slot) == 1

    def indexes(self) -> list[tuple[Any, ...]]:
        """Every index of the target, children of partitioned ones without the names that PostgreSQL made up."""
        return self.execute(
            "target",
            "SELECT CASE WHEN i.relispartition THEN '' ELSE i.relname::text END, x.indrelid::regclass::text,"
            " regexp_replace(pg_get_indexdef(i.oid), 'INDEX \\S+ ON', 'INDEX ON'), x.indisvalid"
            " FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid"
            " WHERE x.indrelid >= 16384 AND i.relnamespace <> 'pg_toast'::regnamespace ORDER BY 1, 2, 3",
        )

    def constraints(self) -> list[tuple[Any, ...]]:
        """Every constraint of the target, with all that could get lost when a key is built anew."""
        return self.execute(
            "target",
            "SELECT conrelid::regclass::text, conname::text, conislocal, coninhcount, connoinherit, condeferrable,"
            " conindid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid >= 16384 AND connamespace <> to_regnamespace('replicator') ORDER BY 1, 2",
        )

    def load_users(self) -> None:
        """What ``users import`` does, in plain SQL."""
        if self.map_file is None:
            return
        with psycopg.connect(self.target_dsn, autocommit=True) as conn:
            state.migrate(conn)
            conn.cursor().executemany(
                "INSERT INTO replicator.id_map (map, source_id, target_id) VALUES ('users', %s, %s)",
                [
                    (each["supabaseUserId"], each["stackAuthUserId"])
                    for each in json.loads(self.map_file.read_text())["mappings"]
                ],
            )


def simple_case(source_dsn: str, target_dsn: str, **sections: Any) -> Case:
    """All tables of schema public; the slot is named after the source's database."""
    sections.setdefault("source", {}).update(dsn=source_dsn, slot=slot_name(source_dsn))
    sections["target"] = {"dsn": target_dsn}
    return Case(source_dsn, target_dsn, Settings(**sections))


def freshtrack_case(source_dsn: str, target_dsn: str, tmp_path: Path, rows: int, **sections: Any) -> Case:
    """The FreshTrack schemas on both sides, data on the source, the user map on the target."""
    map_file = tmp_path / "user-mapping.json"
    with psycopg.connect(source_dsn) as conn:
        conn.execute(source_schema())
        generate(conn, rows, seed=11)
        write_map_file(conn, map_file, leave_out=2)
    with psycopg.connect(target_dsn) as conn:
        conn.execute(target_schema())
    sections.setdefault("source", {})["slot"] = slot_name(source_dsn)
    settings = Settings(**tomllib.loads(settings_toml(source_dsn, target_dsn, **sections)))
    case = Case(source_dsn, target_dsn, settings, map_file)
    case.load_users()
    return case


def slot_name(source_dsn: str) -> str:
    return "slot_" + str(psycopg.conninfo.conninfo_to_dict(source_dsn)["dbname"])


CaseMaker = Callable[..., Case]
