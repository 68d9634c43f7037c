"""Starting over on command: where the stream cannot go on, and nowhere else; killed at any moment, it goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.refusals.site import Site
from tests.slot.conftest import Narrow

SOURCE_ID, TARGET_ID = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-0000000000aa"
_ANEW = ("`replicator run --truncate` starts over", "replicator teardown")


@contextmanager
def writers(site: Site) -> Iterator[None]:
    """The source's applications, which know nothing of all this; a frozen source makes them wait, then ends them."""
    done = threading.Event()

    def write() -> None:
        number = 5000
        with psycopg.connect(site.source_dsn, autocommit=True) as conn:
            while not done.wait(0.02):
                number += 1
                try:
                    conn.execute("INSERT INTO customers VALUES (%s, 'w', NULL)", [number])
                    conn.execute("INSERT INTO orders VALUES (%s, %s, 'w', 1)", [number, number])
                    conn.execute("UPDATE notes SET heading = %s WHERE id = %s", [str(number), 1 + number % 60])
                    conn.execute("DELETE FROM orders WHERE id = %s", [number - 40])
                except (psycopg.errors.ReadOnlySqlTransaction, psycopg.OperationalError):
                    return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def dropped(site: Site) -> None:
    site.sql("source", "SELECT pg_drop_replication_slot(%s)", site.slot)


def made_again(site: Site) -> None:
    dropped(site)
    site.write()
    site.sql("source", "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", site.slot)


def without_publication(site: Site) -> None:
    site.sql("source", f"DROP PUBLICATION {site.slot}")


def advanced(site: Site) -> None:
    site.write()
    site.sql("source", "SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", site.slot)


def test_lost_under_live_writes_then_over_again_to_the_cutover(make_narrow: Callable[..., Narrow]) -> None:
    """What the message says is all that is to be done; the ID map stays, and nothing is lost or twice."""
    site = make_narrow(16)
    site.more = '[id_maps.users]\nkind = "table"\ncolumns = ["customers.email"]\n'
    site.sql("source", "UPDATE customers SET email = %s WHERE id = 7", SOURCE_ID)
    mapping = {"supabaseUserId": SOURCE_ID, "stackAuthUserId": TARGET_ID, "email": "seven@example.org"}
    (site.directory / "map.json").write_text(json.dumps({"mappings": [mapping]}))
    site.done("users", "import", str(site.directory / "map.json"))
    with writers(site):
        site.run()
        site.lose_slot()
        site.refused(3, "run", says=(f"slot {site.slot} is lost", *_ANEW))
        with site.service("--truncate", "--yes") as service:
            service.wait_until_caught_up()
            assert site.wal_status() == "reserved"
            site.done("cutover", "--yes")
            service.ends(0)
    site.close()  # the cutover has ended the source's sessions
    site.source_dsn = make_conninfo(site.source_dsn, options="-c default_transaction_read_only=off")
    site.assert_equal("orders", "notes")
    assert site.value("target", "SELECT count(*) FROM customers") == site.value(
        "source", "SELECT count(*) FROM customers"
    )
    assert site.value("target", "SELECT email FROM customers WHERE id = 7") == TARGET_ID


@pytest.mark.parametrize(
    "lose", [without_publication, *(pytest.param(each, marks=pytest.mark.soak) for each in (made_again, advanced))]
)
def test_each_way_to_lose_the_stream_has_the_same_remedy(streamed: Site, lose: Callable[[Site], None]) -> None:
    lose(streamed)
    streamed.write()
    streamed.refused(3, "snapshot", says=_ANEW)
    streamed.done("snapshot", "--truncate", "--yes")
    streamed.write()
    streamed.run()
    streamed.assert_equal()


def test_where_the_stream_can_go_on_truncate_changes_nothing(streamed: Site) -> None:
    """As in the file of a service that is started again and again."""
    streamed.write()
    before = streamed.value("target", "SELECT array_agg(attempt) FROM replicator.table_state")
    streamed.done("run", "--truncate", "--yes", "--until-caught-up")
    streamed.done("snapshot", "--truncate", "--yes")
    assert streamed.value("target", "SELECT array_agg(attempt) FROM replicator.table_state") == before
    streamed.assert_equal()


def test_a_slot_that_somebody_uses_is_left_alone(streamed: Site) -> None:
    """Made again under our name by another replicator, which is reading it: it would lose its stream."""
    made_again(streamed)
    other = psycopg.connect(make_conninfo(streamed.source_dsn, replication="database"), autocommit=True)
    try:
        options = f"(proto_version '1', publication_names '{streamed.slot}')"
        other.pgconn.exec_(f"START_REPLICATION SLOT {streamed.slot} LOGICAL 0/0 {options}".encode())
        streamed.ends(3, "run", "--truncate", "--yes", says=("is in use by another session",))
        assert streamed.slots() == 1
        contents = streamed.contents()
        assert all(contents.values()), "nothing was emptied for nothing"
    finally:
        other.close()
    streamed.done("run", "--truncate", "--yes", "--until-caught-up")
    streamed.assert_equal()


def test_a_slot_of_another_kind_is_left_alone(streamed: Site) -> None:
    dropped(streamed)
    streamed.sql("source", "SELECT pg_create_physical_replication_slot(%s)", streamed.slot)
    try:
        streamed.refused(3, "run", "--truncate", "--yes", says=("not the one that we made", "choose another name"))
        assert streamed.slots() == 1
    finally:
        dropped(streamed)
    streamed.done("run", "--truncate", "--yes", "--until-caught-up")
    streamed.assert_equal()


def test_neither_beside_an_unfinished_cutover_nor_after_one(streamed: Site) -> None:
    dropped(streamed)
    streamed.sql("target", "UPDATE replicator.checkpoint SET phase = 'cutting_over'")
    streamed.refused(1, "run", "--truncate", "--yes", says=("a cutover is unfinished", "replicator cutover abort"))
    streamed.sql("target", "UPDATE replicator.checkpoint SET phase = 'cut_over'")
    streamed.write()
    before = streamed.contents()
    streamed.done("run", "--truncate", "--yes")
    streamed.done("snapshot", "--truncate", "--yes")
    assert streamed.contents() == before, "the target is its own master now"
    assert streamed.slots() == 0


MOMENTS = {
    "forgotten": "SELECT EXISTS (SELECT FROM replicator.checkpoint WHERE phase = 'new')",
    "emptied": "SELECT NOT EXISTS (SELECT FROM notes) OR EXISTS "
    "(SELECT FROM replicator.checkpoint WHERE phase = 'copying')",
    "half": "SELECT count(*) FILTER (WHERE state = 'copied') > 0 AND count(*) FILTER (WHERE state <> 'copied') > 0"
    " FROM replicator.table_state",
    "copied": "SELECT bool_and(state = 'copied' AND attempt > 1) AND"
    " (SELECT phase = 'catching_up' FROM replicator.checkpoint) FROM replicator.table_state",
}


@pytest.mark.parametrize(
    "moment", ["forgotten", "half", *(pytest.param(name, marks=pytest.mark.soak) for name in ("emptied", "copied"))]
)
def test_killed_in_the_middle_it_goes_on_without_being_told_again(streamed: Site, moment: str) -> None:
    """From the moment on at which the old position is forgotten, any start finishes it."""
    dropped(streamed)
    streamed.write()
    with psycopg.connect(streamed.source_dsn) as writer:
        if moment == "forgotten":  # the new slot waits for whoever writes
            writer.execute("INSERT INTO notes VALUES (-7, 'still open')")
        process = streamed.start("snapshot", "--truncate", "--yes", "--workers", "1")
        while process.poll() is None and not streamed.value("target", MOMENTS[moment]):
            pass
        process.kill()
        process.communicate()
        writer.rollback()
    streamed.wait(lambda: not active(streamed), "the slot's session stays")
    streamed.write()
    streamed.run()
    streamed.assert_equal()


def active(site: Site) -> bool:
    query = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s AND active"
    return bool(site.value("source", query, site.slot))


@pytest.mark.soak
def test_a_table_that_left_the_settings_is_forgotten_and_keeps_its_rows(site: Site) -> None:
    site.run()
    dropped(site)
    site.tables.remove("notes")
    site.sql("source", f"ALTER PUBLICATION {site.slot} DROP TABLE notes")
    site.sql("target", "UPDATE notes SET body = 'ours now'")
    site.done("run", "--truncate", "--yes", "--until-caught-up")
    assert site.value("target", "SELECT count(*) FROM notes WHERE body = 'ours now'") == 60
    assert site.table_state("notes") is None
    site.assert_equal()


@pytest.mark.soak
def test_rows_of_tables_that_we_never_copied_are_emptied_too(site: Site) -> None:
    """A table that came into the settings meanwhile: --truncate says so, and without it nothing happens."""
    site.tables.remove("notes")
    site.run()
    dropped(site)
    site.tables.append("notes")
    site.sql("target", "INSERT INTO notes VALUES (99999, 'of somebody else')")
    site.refused(3, "run", says=_ANEW)
    site.done("run", "--truncate", "--yes", "--until-caught-up")
    site.assert_equal()


def test_a_table_outside_the_plan_that_references_ours_is_never_emptied(site: Site) -> None:
    site.sql("target", "CREATE TABLE outside (id int PRIMARY KEY, customer_id int REFERENCES customers)")
    site.run()
    site.sql("target", "INSERT INTO outside VALUES (1, 7)")
    dropped(site)
    site.done("run", "--truncate", "--yes", "--until-caught-up")
    assert site.value("target", "SELECT count(*) FROM outside") == 1
    site.assert_equal()


def test_indexes_that_were_away_when_the_slot_was_lost_come_back(make_narrow: Callable[..., Narrow]) -> None:
    """Their definitions are kept through the new start; a second copy must not forget them."""
    site = make_narrow(16)
    rows = "INSERT INTO notes SELECT i, 'x', 'y', 'z', 'u' FROM generate_series(100, 20100) i"
    site.sql("source", f"{rows}; ANALYZE")
    site.sql("target", "CREATE INDEX notes_body ON notes (body); CREATE INDEX notes_mood ON notes (mood)")
    with psycopg.connect(site.target_dsn) as blocker:
        blocker.execute("LOCK TABLE orders IN SHARE ROW EXCLUSIVE MODE")
        process = site.start("run", "--until-caught-up", REPLICATOR_FAILPOINTS="before_index_rebuild=hold:60")
        away = "SELECT count(*) FROM replicator.deferred_index WHERE state = 'dropped'"
        site.wait(lambda: site.checkpoint() is not None and site.value("target", away) >= 2, "no index is away")
        process.kill()
        process.communicate()
    site.lose_slot()
    site.done("run", "--truncate", "--yes", "--until-caught-up")
    found = site.sql("target", "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'notes'::regclass")
    assert {name for (name,) in found} == {"notes_pkey", "notes_body", "notes_mood"}
    site.assert_equal()
