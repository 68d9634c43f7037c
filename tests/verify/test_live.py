"""While the stream runs: what is on its way is no difference, and what is a difference is found."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from replicator.errors import Refused, StateError
from replicator.model.lsn import ZERO
from replicator.postgres.connection import connect
from replicator.target import state
from replicator.verify import Progress, job
from replicator.verify import run as verify_run
from tests.verify.sides import Sides, counts
from tests.verify.trickle import Change, Trickle

ROWS = 20_000
SCHEMA = """
CREATE TABLE accounts (id int PRIMARY KEY, v text, n int NOT NULL);
CREATE TABLE queue (id int PRIMARY KEY, job text);
CREATE TABLE log (at int, line text);
CREATE TABLE members (team int, who uuid, n int, PRIMARY KEY (team, who));
"""
MAP = {f"00000000-0000-4000-8000-{n:012d}": f"ffffffff-0000-4000-8000-{999999 - n:012d}" for n in range(50)}
USERS = {"users": {"kind": "table", "columns": ["members.who"]}}


def fill(sides: Sides) -> None:
    sides.on_both(SCHEMA)
    sides.on_both("ALTER TABLE log REPLICA IDENTITY FULL")
    sides.on_both(f"INSERT INTO accounts SELECT g, 'v' || g, 0 FROM generate_series(1, {ROWS}) g")
    sides.on_both("INSERT INTO log SELECT g / 3, 'line' FROM generate_series(1, 3000) g")
    sides.on_both("ANALYZE")
    for number, (source_id, target_id) in enumerate(MAP.items()):
        sides.on_source("INSERT INTO members VALUES (%s, %s, 0)", number % 7, source_id)
        sides.on_target("INSERT INTO members VALUES (%s, %s, 0)", number % 7, target_id)
    sides.set_map("users", MAP)


def changes(seed: int, *, spare: int = 0) -> Callable[[int], tuple[Change, Change]]:
    """Inserts, updates, deletes, a row that changes every time, one that goes back and forth, short-lived and equal
    rows, TRUNCATE.

    ``spare``: leave accounts up to this ID alone, but for 1 and 2.
    """
    rng = random.Random(seed)
    ids = list(MAP.items())

    def next_changes(number: int) -> tuple[Change, Change]:
        same: list[tuple[str, tuple[object, ...]]] = [
            ("UPDATE accounts SET n = %s WHERE id = 1", (number,)),
            ("UPDATE accounts SET v = %s WHERE id = 2", ("on" if number % 2 else "off",)),
        ]
        account = rng.randint(max(3, spare + 1), ROWS)
        match rng.randint(0, 3):
            case 0:
                same.append(("DELETE FROM accounts WHERE id = %s", (account,)))
            case 1:
                same.append(("UPDATE accounts SET v = %s WHERE id = %s", (f"new {number}", account)))
            case 2:
                same.append(("INSERT INTO accounts VALUES (%s, 'made', 1)", (ROWS + number + 1,)))
            case _:
                same.append(("INSERT INTO log VALUES (%s, 'line')", (number // 3,)))
        same.append(("INSERT INTO log VALUES (-5, 'again and again')", ()))
        same.append(("INSERT INTO queue VALUES (%s, 'job') ON CONFLICT DO NOTHING", (number % 5,)))
        same.append(("DELETE FROM queue WHERE id = %s", ((number + 3) % 5,)))
        if number % 20 == 0:
            same.append(("TRUNCATE queue", ()))
        who, mapped = rng.choice(ids)
        team = rng.randint(0, 6)
        upsert = "INSERT INTO members VALUES (%s, %s, %s) ON CONFLICT (team, who) DO UPDATE SET n = excluded.n"
        return [*same, (upsert, (team, who, number))], [*same, (upsert, (team, mapped, number))]

    return next_changes


@pytest.fixture
def busy(make_sides: Callable[..., Sides]) -> Sides:
    sides = make_sides(id_maps=USERS)
    fill(sides)
    return sides


def test_changes_on_their_way_are_no_differences(busy: Sides) -> None:
    with Trickle(busy, changes(1)) as trickle:
        for _ in range(5):
            report = busy.verify()
            assert report.equal, report.summary()
            assert report.lsn > ZERO
            for table in report.tables:
                assert table.source_rows == table.target_rows
        assert trickle.transactions > 200
    assert busy.verify(live=False).equal


def test_a_service_that_was_just_away_does_not_make_differences(busy: Sides) -> None:
    """It is back before the end, and applies what it had not yet: that is looked at again as beside a running one."""
    busy.on_source("UPDATE accounts SET v = 'late' WHERE id = 5")
    started = threading.Event()
    with contextlib.ExitStack() as stack:

        def come_back(_: Progress) -> None:
            if not started.is_set():
                started.set()
                stack.enter_context(Trickle(busy, changes(4, spare=20)))
                busy.on_target("UPDATE accounts SET v = 'late' WHERE id = 5")

        report = busy.verify(progress=come_back)
    assert started.is_set()
    assert report.equal, report.summary()


def test_real_differences_are_found_amid_changes(busy: Sides) -> None:
    busy.on_target("UPDATE accounts SET v = 'wrong' WHERE id IN (10, 11)")
    busy.on_target("DELETE FROM accounts WHERE id = 12")
    busy.on_target("INSERT INTO accounts VALUES (-1, 'never', 0)")
    busy.on_target("DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log)")
    busy.on_target("INSERT INTO log VALUES (-1, 'never'), (-1, 'never')")
    busy.on_target("INSERT INTO members VALUES (100, '11111111-0000-4000-8000-000000000000', 1)")
    busy.on_source("INSERT INTO members VALUES (101, %s, 1)", next(iter(MAP)))
    with Trickle(busy, changes(2, spare=20)):
        report = busy.verify()
    found = {table.name: table for table in report.tables}
    assert counts(found["accounts"]) == (1, 1, 2)
    assert set(found["accounts"].keys) == {"10", "11", "12", "-1"}
    assert counts(found["log"]) == (1, 2, 0)
    assert counts(found["members"]) == (1, 1, 0)
    assert set(found["members"].keys) == {
        "100, 11111111-0000-4000-8000-000000000000",
        f"101, {next(iter(MAP.values()))}",
    }
    assert counts(found["queue"]) == (0, 0, 0)
    assert not report.equal


def test_a_row_that_the_stream_passes_by_differs_however_often_it_changes(busy: Sides) -> None:
    both = changes(3)

    def without_first_account(number: int) -> tuple[Change, Change]:
        ours, theirs = both(number)
        return ours, [change for change in theirs if "id = 1" not in change[0]]

    with Trickle(busy, without_first_account, delay_s=0.01):
        report = busy.verify("accounts")
    [table] = report.tables
    assert (counts(table), table.keys) == ((0, 0, 1), ("1",))


def test_counts_while_rows_come_and_go(busy: Sides) -> None:
    with Trickle(busy, changes(4)):
        assert busy.verify(counts_only=True).equal
    busy.on_target("DELETE FROM accounts WHERE id = (SELECT min(id) FROM accounts WHERE id > 2)")
    with connect(busy.settings.target.dsn, "target", purpose="test") as conn:
        state.drop(conn)
    busy.set_map("users", MAP)
    with Trickle(busy, lambda number: ([], [])):
        report = busy.verify(counts_only=True)
    assert {table.name: counts(table) for table in report.tables if not table.equal} == {"accounts": (1, 0, 0)}


def test_a_stream_that_stands_still_is_told(busy: Sides) -> None:
    """It must neither wait for ever nor compare with a target that is behind."""
    with connect(busy.settings.target.dsn, "target", purpose="test") as conn:
        state.lock_writer(conn, busy.settings.source.slot)
        state.create_checkpoint(conn, busy.settings.source.slot, ZERO, "1", "app")
        state.set_phase(conn, busy.settings.source.slot, "streaming")
        started = time.monotonic()
        with pytest.raises(StateError, match="does not advance"):
            busy.verify(stream_timeout_s=0.5)
        assert time.monotonic() - started < 10
        state.set_phase(conn, busy.settings.source.slot, "copying")
        with pytest.raises(Refused, match="still being copied"):
            busy.verify()
        state.set_phase(conn, busy.settings.source.slot, "streaming")
        state.add_table_states(conn, busy.settings.source.slot, [("public", "log")])
        with pytest.raises(Refused, match="still being copied: log"):
            busy.verify()
    report = busy.verify()  # nobody holds the lock now: compared as it is
    assert report.equal, report.summary()


def test_stop_ends_the_waiting(busy: Sides) -> None:
    stop = threading.Event()
    with connect(busy.settings.target.dsn, "target", purpose="test") as conn:
        state.create_checkpoint(conn, busy.settings.source.slot, ZERO, "1", "app")
        state.set_phase(conn, busy.settings.source.slot, "streaming")
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    with pytest.raises(Refused, match="stopped"):
        busy.verify(live=True, stop=stop)
    assert time.monotonic() - started < verify_run.STREAM_TIMEOUT_S / 4


def test_nobody_waits_for_the_whole_verification(busy: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ALTER TABLE waits while its table is read. Were that table's lock kept, or the table read again on a second
    session meanwhile, the two would wait for each other.
    """
    busy.on_target("UPDATE accounts SET v = 'wrong' WHERE id % 5 = 0")
    monkeypatch.setattr(job, "_PROGRESS_S", 0.0)
    altered = threading.Event()

    def alter(progress: Progress) -> None:
        if not progress.done and not altered.is_set():
            altered.set()
            threading.Thread(target=busy.on_source, args=("ALTER TABLE accounts ADD COLUMN news int",)).start()
            wait_for_lock(busy)

    started = time.monotonic()
    report = busy.verify("accounts", live=False, progress=alter)
    assert altered.is_set()
    assert counts(report.tables[0]) == (0, 0, ROWS // 5)
    assert time.monotonic() - started < 30


def wait_for_lock(sides: Sides) -> None:
    """Until a session waits for a lock. Not on `sides.source`: that is the one that waits."""
    with psycopg.connect(sides.settings.source.dsn) as conn:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if conn.execute("SELECT FROM pg_locks WHERE NOT granted AND locktype = 'relation'").fetchall():
                return
            time.sleep(0.01)
    raise AssertionError("nobody waits")
