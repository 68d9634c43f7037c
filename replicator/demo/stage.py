"""What the demo plays on: two servers, sample data, a settings file, a user map."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg

from replicator.config import Settings, load
from replicator.demo.freshtrack import (
    extras_schema,
    generate,
    settings_toml,
    source_schema,
    target_schema,
    write_map_file,
)
from replicator.demo.screen import Screen
from replicator.demo.servers import Server, find_installations, free_port
from replicator.errors import ConfigError

LEFT_OUT: Final = 5  # users that the map file does not know
_WANTED: Final = (16, 18)
_DATABASE: Final = "freshtrack"
_SEED: Final = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """All that is there before the first command."""

    directory: Path
    source: Server
    target: Server
    source_dsn: str
    target_dsn: str
    settings: Settings
    settings_path: Path
    map_path: Path
    rows: int
    users: int


@contextlib.contextmanager
def set_stage(screen: Screen, rows: int) -> Iterator[Stage]:
    """Start the servers and fill the source; afterwards nothing is left of it.

    Raises:
        ConfigError: there are no PostgreSQL programs on this machine.
    """
    majors = choose_majors(list(find_installations()))
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="replicator-demo-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        with screen.step(f"start PostgreSQL {majors[0]} (source) and {majors[1]} (target)") as step:
            source, target = (stack.enter_context(Server.start(major)) for major in majors)
            source_dsn, target_dsn = (server.create_database(_DATABASE) for server in (source, target))
            step.result = f"ports {source.port} and {target.port}"
        with screen.step("create the FreshTrack schemas and fill the source") as step:
            with psycopg.connect(target_dsn) as conn:
                conn.execute((target_schema() + extras_schema()).encode())
            with psycopg.connect(source_dsn) as conn:
                conn.execute((source_schema() + extras_schema()).encode())
                counts = generate(conn, rows, _SEED, lambda table, count: step.show(f"{table}: {count:,} rows"))
                mapped = write_map_file(conn, directory / "user-mapping.json", leave_out=LEFT_OUT)
            users = counts.pop("auth.users")
            total = sum(counts.values())
            step.result = f"{total:,} rows in {len(counts)} tables; a map file of {len(mapped):,} of {users:,} users"
        path = directory / "replicator.toml"
        path.touch(mode=0o600)
        path.write_text(settings_toml(source_dsn, target_dsn, extras=True, listen=f"127.0.0.1:{free_port()}"), "utf-8")
        yield Stage(
            directory, source, target, source_dsn, target_dsn,
            load(path), path, directory / "user-mapping.json", total, users,
        )  # fmt: skip


def choose_majors(found: list[int]) -> tuple[int, int]:
    """Majors of source and target: 16 → 18, else the two newest, else twice the only one.

    Raises:
        ConfigError: there is none.
    """
    if not found:
        raise ConfigError(
            "no PostgreSQL programs found on this machine",
            hint="install replicator[demo], or name directories of programs in REPLICATOR_PG_BIN",
        )
    if set(_WANTED) <= set(found):
        return _WANTED
    older, newer = sorted(found)[-2:] if len(found) > 1 else (found[0], found[0])
    return older, newer
