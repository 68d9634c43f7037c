"""A slot on its way to its end, and past it: every stage is told, and none is passed over in silence."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from replicator import monitor
from replicator.config import load
from replicator.demo.servers import find_installations
from replicator.status import StatusReader
from tests.slot.conftest import Narrow

_ANEW = "`replicator run --truncate` starts over"
MAJORS = [pytest.param(16, id="pg16"), pytest.param(18, id="pg18", marks=pytest.mark.soak)]


def status(site: Narrow) -> dict[str, Any]:
    """The document of ``status --json``, read in this process: a command of its own takes its time to start."""
    reader = StatusReader(load(site.config))
    try:
        return reader.read().to_json()
    finally:
        reader.close()


def problem(site: Narrow, text: str) -> str:
    """The one problem of the status that says so."""
    [found] = [each for each in status(site)["problems"] if text in each]
    return str(found)


@pytest.mark.parametrize("major", MAJORS)
def test_from_reserved_to_lost_under_the_service(make_narrow: Callable[..., Narrow], major: int) -> None:
    """Held up by a lock on the target: extended is no fault, unreserved is one and can be mended, lost ends it."""
    site = make_narrow(major)
    with site.service() as service:
        service.wait_until_caught_up()
        with psycopg.connect(site.target_dsn) as blocker:
            blocker.execute("LOCK TABLE notes IN SHARE ROW EXCLUSIVE MODE")
            site.write()
            site.settle_slot()
            site.push_to("extended")
            found = status(site)
            assert found["slot"]["wal_status"] == "extended"
            assert 0 < found["slot"]["safe_bytes"] <= 32 << 20
            others = [each for each in found["problems"] if "waits for table notes" not in each]
            assert all("may be lost in" in each for each in others), "that alone is no fault"
            site.push_to("unreserved")
            told = problem(site, "is about to be lost")
            assert "raise max_slot_wal_keep_size" in told
            assert "what holds the service up" in told
            assert status(site)["slot"]["seconds_until_lost"] == 0.0
            time.sleep(2 * monitor._READ_EVERY_S)  # the service looks for itself
            site.refused(1, "cutover", "--dry-run", says=())
            # The remedy, while there is time: a reload is enough.
            site.set("max_slot_wal_keep_size", "1GB")
            assert site.wal_status() == "extended"
            assert not [each for each in status(site)["problems"] if "about to be lost" in each]
            site.set("max_slot_wal_keep_size", "96MB")
            site.lose_slot()
            lost = problem(site, "is lost")
            assert "raise max_slot_wal_keep_size first" in lost
            assert _ANEW in lost
            blocker.rollback()
        ended = service.ends(3, says=(f"slot {site.slot}.*(is lost|can no longer)", _ANEW, "replicator teardown"))
        assert "the slot is unreserved" in ended.err
    assert "SlotLost" not in ended.err


def test_lost_while_stopped(make_narrow: Callable[..., Narrow]) -> None:
    """Every command says so, and none changes anything."""
    site = make_narrow(16)
    site.run()
    site.lose_slot()
    site.write()
    found = status(site)
    assert found["slot"] == found["slot"] | {"wal_status": "lost", "safe_bytes": 0, "seconds_until_lost": 0.0}
    assert problem(site, f"slot {site.slot} is lost")
    lost = (f"slot {site.slot} is lost: the source has removed WAL", "raise max_slot_wal_keep_size first", _ANEW)
    site.refused(3, "run", says=lost)
    site.refused(3, "snapshot", says=lost)
    site.refused(3, "snapshot", "--table", "notes", "--truncate", "--yes", says=lost)
    dry = site.ends(1, "snapshot", "--dry-run")
    assert "refused without --truncate, which would start over" in dry.out
    dry = site.ends(0, "snapshot", "--dry-run", "--truncate")
    assert "notes — would be emptied and copied again" in dry.out
    site.refused(2, "snapshot", "--truncate", says=("--yes",))
    assert site.wal_status() == "lost", "nobody has touched it"


def test_lost_in_the_middle_of_the_snapshot(make_narrow: Callable[..., Narrow]) -> None:
    """Rows that are copied from then on are of no use: it ends at once, not hours later."""
    site = make_narrow(16)
    with psycopg.connect(site.target_dsn) as blocker:
        blocker.execute("LOCK TABLE notes IN SHARE ROW EXCLUSIVE MODE")
        process = site.start("run")
        site.wait(lambda: site.table_state("customers") == "copying", "the copy does not begin")
        site.lose_slot()
        _, err = process.communicate(timeout=30)
        assert process.returncode == 3, err
        assert f"slot {site.slot} is lost" in err
        assert _ANEW in err
        assert site.phase() == "copying"
    site.refused(3, "run", says=("is lost", _ANEW))
    site.done("run", "--truncate", "--yes", "--until-caught-up")
    site.assert_equal()


def test_lost_during_the_cutover(make_narrow: Callable[..., Narrow]) -> None:
    """Undone within seconds: writers do not wait for the time limit, and nothing is handed over."""
    site = make_narrow(16)
    with site.service() as service:
        service.wait_until_caught_up()
        site.wait(lambda: site.phase() == "streaming", "not streaming")
        with psycopg.connect(site.target_dsn) as blocker:
            blocker.execute("LOCK TABLE notes IN SHARE ROW EXCLUSIVE MODE")
            site.write()
            process = site.start("cutover", "--yes", "--timeout", "120", "--verify", "none")
            site.wait(lambda: site.step("drain") == "running", "no drain")
            began = time.monotonic()
            site.lose_slot()
            _, err = process.communicate(timeout=60)
            assert time.monotonic() - began < 30
            assert process.returncode != 0
            assert f"slot {site.slot} is lost" in err
            site.write()  # open again
            assert site.step("drain") == "failed"
            assert site.phase() in ("streaming", "catching_up")
        service.ends(3, says=(_ANEW,))
    site.done("run", "--truncate", "--yes", "--until-caught-up")
    site.assert_equal()


@pytest.mark.skipif(18 not in find_installations(), reason="no PostgreSQL 18 here")
def test_ended_for_being_idle(make_narrow: Callable[..., Narrow]) -> None:
    """Server 18 may end slots that nobody reads: forecast, told from other reasons, with a remedy of its own."""
    site = make_narrow(18, idle_replication_slot_timeout="600s")
    site.run()
    found = status(site)
    assert 500 < found["slot"]["seconds_until_lost"] <= 600
    assert "idle_replication_slot_timeout may end it in" in problem(site, "nobody reads slot")
    site.set("idle_replication_slot_timeout", "1s")
    time.sleep(1.2)
    with psycopg.connect(site.server.dsn(), autocommit=True) as conn:
        conn.execute("CHECKPOINT")
    assert status(site)["slot"]["invalidation_reason"] == "idle_timeout"
    assert "set that to 0 first" in problem(site, "is lost")
    site.refused(3, "run", says=("nobody read it for idle_replication_slot_timeout", _ANEW))
    site.set("idle_replication_slot_timeout", "0")
    site.done("run", "--truncate", "--yes", "--until-caught-up")
    site.assert_equal()
