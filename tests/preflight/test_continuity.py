"""What an earlier run has left, against what it finds now."""

import threading
import time

import psycopg
import pytest

from replicator import service
from tests.snapshot.case import simple_case

PLAIN = "CREATE TABLE t (id int PRIMARY KEY, v text)"


@pytest.fixture
def copied(sides):
    """After a snapshot: slot, publication, checkpoint."""
    sides.both(PLAIN)
    sides.source("INSERT INTO t VALUES (1, 'a')")
    assert simple_case(sides.source_dsn, sides.target_dsn).run()
    return sides


def test_after_a_snapshot_all_is_well(copied):
    found = copied.check()
    assert found.bad() <= {("collation", "warn")}
    assert "belongs to this source" in found.text("same_source")
    assert found.status("empty_tables") == {"pass"}, "rows that we copied ourselves are no surprise"


def test_a_slot_that_is_gone_needs_a_new_snapshot(copied):
    copied.source("SELECT pg_drop_replication_slot(%s)", copied.slot)
    found = copied.check()
    assert found.status("slot") == {"fail"}
    assert "teardown" in found.text("slot")


def test_a_slot_that_was_moved_past_the_checkpoint_has_lost_changes(copied):
    """The server would start at its own position and skip what lies between, without a word."""
    copied.source("INSERT INTO t VALUES (2, 'b')")
    copied.source("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", copied.slot)
    found = copied.check()
    assert found.status("slot") == {"fail"}
    assert "past our checkpoint" in found.text("slot")


def test_a_publication_that_is_gone_has_lost_changes(copied):
    copied.source("DROP PUBLICATION replicator")
    found = copied.check()
    assert found.status("publication") == {"fail"}
    assert "is gone" in found.text("publication")


def test_a_table_that_left_the_publication_must_be_copied_again(copied):
    copied.source("ALTER PUBLICATION replicator DROP TABLE t")
    found = copied.check()
    assert found.status("publication") == {"fail"}
    assert "snapshot --table" in found.text("publication")


def test_a_checkpoint_of_another_source_is_never_used(copied):
    copied.target("UPDATE replicator.checkpoint SET system_identifier = '1'")
    assert copied.check().status("same_source") == {"fail"}


def test_a_slot_without_a_checkpoint_is_somebody_elses(copied):
    copied.target("DROP SCHEMA replicator CASCADE")
    found = copied.check()
    assert found.status("slot") == {"fail"}
    assert "no checkpoint" in found.text("slot")
    assert found.status("empty_tables") == {"warn"}


def test_a_slot_of_another_plugin_is_not_ours(sides):
    sides.both(PLAIN)
    sides.source("SELECT pg_create_physical_replication_slot(%s)", sides.slot)
    try:
        found = sides.check()
        assert found.status("slot") == {"fail"}
        assert "another plugin" in found.text("slot")
    finally:
        sides.source("SELECT pg_drop_replication_slot(%s)", sides.slot)


def test_after_the_cutover_slot_and_publication_may_be_gone(copied):
    copied.target("UPDATE replicator.checkpoint SET phase = 'cut_over'")
    copied.source("SELECT pg_drop_replication_slot(%s)", copied.slot)
    copied.source("DROP PUBLICATION replicator")
    assert copied.check().bad() <= {("collation", "warn")}


def test_beside_a_service_that_streams_under_load_nothing_is_amiss(copied):
    """Slot and checkpoint move while they are looked at."""
    done = threading.Event()

    def write():
        with psycopg.connect(copied.source_dsn, autocommit=True) as conn:
            while not done.wait(0.002):
                conn.execute("INSERT INTO t SELECT max(id) + 1, 'x' FROM t")

    writer = threading.Thread(target=write)
    running = service.Service(
        copied.settings(metrics={"listen": ""}), truncate=False, until=None, until_caught_up=False
    )
    stream = threading.Thread(target=running.run)
    stream.start()
    writer.start()
    try:
        deadline = time.monotonic() + 30
        while copied.target("SELECT count(*) > 50 FROM t") != [(True,)]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for _ in range(8):
            assert copied.check().bad() <= {("collation", "warn")}
    finally:
        done.set()
        running.stop.set()
        writer.join()
        stream.join(20)
