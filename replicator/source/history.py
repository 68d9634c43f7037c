"""The source's history: after a failover or a restore, is what we have applied part of it?

Every promotion begins a new timeline at some position of the old one. What was written on the old one behind it is in
no server any more; a target that has applied it is ahead of its source, and would never meet it again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from psycopg import sql

from replicator.errors import NEW_SNAPSHOT, SlotLost, StateError
from replicator.model.lsn import Lsn
from replicator.postgres.connection import Connection, connect, query, translated


@dataclass(frozen=True, slots=True)
class Identity:
    """What IDENTIFY_SYSTEM says of the server at the other end of a replication session."""

    system_identifier: str
    timeline: int
    flushed: Lsn


def identify(conn: Connection) -> Identity:
    """Which server, and which timeline, a replication session is on."""
    row = conn.execute("IDENTIFY_SYSTEM").fetchone()
    assert row is not None
    return Identity(row[0], int(row[1]), Lsn.parse(row[2]))


def load_position(conn: Connection) -> tuple[int, Lsn]:
    """Timeline, and how far its WAL is flushed; an error on a standby."""
    [(timeline, flushed)] = query(
        conn,
        """
        SELECT ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))
                   ::bit(32)::bigint,
               pg_catalog.pg_current_wal_flush_lsn()::text
        """,
    )
    return int(timeline), Lsn.parse(flushed)


def load_switches(conn: Connection, timeline: int) -> dict[int, Lsn]:
    """Each timeline that came before this one, with the position at which it was left.

    Args:
        conn: a replication session.

    Source: PostgreSQL docs, "Streaming Replication Protocol", TIMELINE_HISTORY.
    """
    row = conn.execute(sql.SQL("TIMELINE_HISTORY {}").format(sql.SQL(str(timeline)))).fetchone()
    assert row is not None
    text = bytes(row[1]).decode("utf-8", "replace") if not isinstance(row[1], str) else row[1]
    return parse_history(text)


def parse_history(text: str) -> dict[int, Lsn]:
    """The lines of a timeline history file: ``1<tab>0/3000148<tab>no recovery target specified``."""
    found = re.findall(r"^\s*(\d+)\s+([0-9A-Fa-f]+/[0-9A-Fa-f]+)", text, re.MULTILINE)
    return {int(timeline): Lsn.parse(lsn) for timeline, lsn in found}


def require_history(conn: Connection, dsn: str, *, timeline: int | None, lsn: Lsn) -> int:
    """Make sure that all up to ``lsn`` on ``timeline`` is in the source's history.

    Args:
        conn: a plain session on the source; ``dsn`` leads to it too.
        timeline: as recorded; None: not known.
        lsn: the furthest position that the target has anything of.

    Returns:
        The timeline that the source is on now.

    Raises:
        SlotLost: the target is ahead of the source: what it has applied is lost there.
        StateError: the source is a server that was left behind by a failover.
    """
    with translated("source"):
        now, flushed = load_position(conn)
    if timeline is not None and now < timeline:
        raise StateError(
            f"the source is on timeline {now}, and the target follows timeline {timeline}: this server was left behind "
            "by a failover",
            hint="correct [source] dsn to lead to the present primary, and make sure that nobody writes to this one",
        )
    end = flushed
    if timeline is not None and now != timeline:
        with connect(dsn, "source", purpose="history", replication=True) as replication, translated("source"):
            switches = load_switches(replication, now)
        if timeline not in switches:
            raise SlotLost(
                f"the source's timeline {now} does not come from timeline {timeline}, which the target follows",
                hint=NEW_SNAPSHOT,
            )
        end = switches[timeline]
    if lsn > end:
        raise SlotLost(
            f"the target is ahead of the source: it has applied changes up to {lsn}, and the source has lost what lies "
            f"behind {end} in a failover or a restore",
            hint=NEW_SNAPSHOT,
        )
    return now
