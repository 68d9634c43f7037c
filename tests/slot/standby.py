"""A standby of a private server: a base backup that streams from it and keeps its failover slots."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import psycopg

from replicator.demo.servers import Server

SLOT = "standby"


def ask(server: Server, statement: str, dbname: str = "app") -> list[tuple[Any, ...]]:
    with psycopg.connect(server.dsn(dbname), autocommit=True) as conn:
        cursor = conn.execute(statement)
        return cursor.fetchall() if cursor.description else []


def wait(condition: Callable[[], object], otherwise: str, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


def become_standby(server: Server, primary: Server) -> None:
    """Replace what a fresh server holds by a copy of the primary's, and let it follow."""
    server.stop()
    shutil.rmtree(server.data_directory)
    dsn = f"host=127.0.0.1 port={primary.port} user=postgres password={primary.password} dbname=app"
    backup = server._popen(
        [server._bin_dir / "pg_basebackup", "-D", server.data_directory, "-d", dsn, "-X", "stream", "-S", SLOT, "-C",
         "-c", "fast"],
        stdin=subprocess.DEVNULL, output=subprocess.PIPE,
    )  # fmt: skip
    output, _ = backup.communicate(timeout=120)
    assert backup.returncode == 0, output.decode()
    with (server.data_directory / "postgresql.auto.conf").open("a") as configuration:
        configuration.write(
            f"primary_conninfo = '{dsn}'\nprimary_slot_name = '{SLOT}'\n"
            "hot_standby_feedback = on\nsync_replication_slots = on\n"
        )
    signal = server.data_directory / "standby.signal"
    signal.touch()
    if server._account is not None:
        os.chown(signal, server._account.uid, server._account.gid)
    server.password = primary.password
    server.start_again()


def wait_until_synced(primary: Server, standby: Server, slot: str) -> None:
    """Until the standby would keep the slot: only then it is one of its own, and not of the synchronization."""

    def synced() -> bool:
        # The slot moves on only over such a record, and the standby takes over only a slot that moves.
        ask(primary, "SELECT pg_log_standby_snapshot()")
        ask(primary, "INSERT INTO notes (id) SELECT min(id) - 1 FROM notes WHERE id < 0 HAVING min(id) IS NOT NULL")
        rows = ask(standby, f"SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = '{slot}'")
        return rows == [(True,)]

    ask(primary, "INSERT INTO notes (id) VALUES (-1) ON CONFLICT DO NOTHING")
    wait(synced, "the standby does not take the slot over")


def wait_until_replayed(primary: Server, standby: Server) -> None:
    [(lsn,)] = ask(primary, "SELECT pg_current_wal_lsn()::text")
    wait(
        lambda: ask(standby, f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn") == [(True,)],
        "the standby does not follow",
    )


def promote(standby: Server) -> None:
    assert ask(standby, "SELECT pg_promote()") == [(True,)]
