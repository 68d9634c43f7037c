"""Slot, checkpoint and publication are not what they were: nothing is skipped in silence."""

from __future__ import annotations

import contextlib

import psycopg
import pytest
from psycopg import sql

from tests.conftest import ALL_PAIRS
from tests.refusals.site import TABLES, Site

_NEW_SNAPSHOT = ("replicator teardown", "replicator run --truncate")
# From server 18 on, decoding skips changes without their publication instead of failing.
_BOTH_WAYS = [p for p in ALL_PAIRS if p is ALL_PAIRS[0] or (p.values[0] is not None and p.values[0][0] >= 18)]


def start_anew(site: Site) -> None:
    """What the message says."""
    site.done("teardown", "--yes")
    site.done("run", "--truncate", "--yes", "--until-caught-up")
    site.assert_equal()


def recreate_slot(site: Site) -> None:
    """As somebody would who found the slot in their way, and the disk full."""
    with psycopg.connect(site.source_dsn, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", [site.slot]
        )
        for _ in range(1000):
            with contextlib.suppress(psycopg.errors.ObjectInUse):
                conn.execute("SELECT pg_drop_replication_slot(%s)", [site.slot])
                break
        conn.execute("INSERT INTO notes VALUES (-1, 'between the slots') ON CONFLICT DO NOTHING")
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [site.slot])


def create_publication(site: Site) -> None:
    tables = sql.SQL(", ").join(map(sql.Identifier, TABLES))
    with psycopg.connect(site.source_dsn) as conn:
        conn.execute(
            sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)").format(
                sql.Identifier(site.slot), tables
            )
        )


def test_slot_gone_and_recreated_while_stopped(streamed: Site) -> None:
    """The new slot begins behind changes that only the old one held."""
    streamed.sql("source", "SELECT pg_drop_replication_slot(%s)", streamed.slot)
    streamed.write()
    streamed.refused(3, "run", says=(f"slot {streamed.slot} is gone", *_NEW_SNAPSHOT))
    streamed.sql("source", "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", streamed.slot)
    streamed.write()
    streamed.refused(3, "run", says=(f"slot {streamed.slot} stands at .* past our checkpoint", *_NEW_SNAPSHOT))
    start_anew(streamed)


def test_slot_recreated_under_the_running_service(streamed: Site) -> None:
    """The service loses its session, comes back, and must not take the new slot for its own."""
    with streamed.service() as service:
        recreate_slot(streamed)
        # It may come back between the two slots.
        service.ends(3, says=(f"slot {streamed.slot} (stands at .* past our checkpoint|is gone)", *_NEW_SNAPSHOT))
    assert streamed.sql("target", "SELECT FROM notes WHERE id = -1") == [], "nobody could know of it"
    start_anew(streamed)


def test_slot_advanced_by_somebody_else(streamed: Site) -> None:
    """From server 15 on the server would start at the slot's own, later position without a word."""
    streamed.write()
    streamed.sql("source", "SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", streamed.slot)
    streamed.refused(3, "run", says=("past our checkpoint", "advanced by somebody else", *_NEW_SNAPSHOT))
    start_anew(streamed)


def test_checkpoint_older_than_the_slot(streamed: Site) -> None:
    """The target came back from a backup: rows and checkpoint are of yesterday, the slot is of today."""
    lsn = streamed.checkpoint()
    streamed.write()
    streamed.run()
    with streamed.service() as service:  # as it runs, it confirms to the slot what it has committed
        service.wait_until_confirmed(streamed.source_lsn())
        service.stop()
    streamed.sql("target", "UPDATE replicator.checkpoint SET applied_lsn = %s::pg_lsn", lsn)
    streamed.sql("target", "DELETE FROM notes WHERE id >= 1000")
    streamed.refused(3, "run", says=("past our checkpoint", "restored to an earlier state", *_NEW_SNAPSHOT))
    start_anew(streamed)


@pytest.mark.parametrize("pair", _BOTH_WAYS, indirect=True)
def test_publication_missing(site: Site) -> None:
    """The service stops at the first change that it would miss, whether the server fails or only warns.

    To make the publication again does not bring these changes back: the message says so, and it is so.
    """
    site.run()
    with site.service() as service:
        site.write()
        service.wait_until_caught_up()
        site.sql("source", f"DROP PUBLICATION {site.slot}")
        lsn = site.source_lsn()
        site.write()
        service.ends(3, says=(f"publication {site.slot} (is gone|was not there)", *_NEW_SNAPSHOT))
    site.assert_not_past(lsn)
    site.refused(3, "run", says=(f"publication {site.slot} is gone", *_NEW_SNAPSHOT, "again is not enough"))
    create_publication(site)
    site.write()
    site.refused(3, "run", says=(f"publication {site.slot} was (not there|dropped and created again)", *_NEW_SNAPSHOT))
    start_anew(site)


def test_publication_without_one_of_the_tables(streamed: Site) -> None:
    """Unlike a lost publication this costs one table only: it is copied again."""
    streamed.sql("source", f"ALTER PUBLICATION {streamed.slot} DROP TABLE notes")
    streamed.write()
    streamed.refused(3, "run", says=("does not publish notes", "replicator snapshot --table notes"))
    streamed.done("snapshot", "--table", "notes")
    streamed.run()
    streamed.assert_equal()


def test_slot_of_another_target(streamed: Site, site: Site) -> None:
    """Two replicators cannot share a slot: each would miss what the other one read."""
    other = Site(site.directory, streamed.source_dsn, site.target_dsn, streamed.slot)
    with streamed.service() as service:
        other.refused(3, "run", says=(f"slot {other.slot} already exists", "choose another name"))
        other.refused(1, "teardown", "--yes", says=("another replicator's", "nothing was removed"))
        streamed.write()
        service.wait_until_caught_up()
        service.stop()
    streamed.assert_equal()
