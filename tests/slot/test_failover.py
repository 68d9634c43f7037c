"""The source fails over to a standby: the stream goes on if nothing is lost, and refuses if the target is ahead."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replicator.demo.servers import Server, find_installations
from replicator.errors import TransientError
from replicator.model.lsn import Lsn
from replicator.postgres.connection import connect
from replicator.source.history import parse_history, require_history
from tests.conftest import ALL_PAIRS, no_server
from tests.pairs import Servers, TestServer
from tests.refusals.site import Site
from tests.slot.standby import (
    SLOT,
    ask,
    become_standby,
    promote,
    wait,
    wait_until_replayed,
    wait_until_synced,
)

needs_18 = pytest.mark.skipif(18 not in find_installations(), reason="no PostgreSQL 18 here")


@dataclass
class Cluster:
    """A primary and its standby, and a site whose source DSN names both."""

    primary: Server
    standby: Server
    site: Site

    def fail_over(self) -> None:
        """The primary is gone in an instant, and the standby takes its place."""
        self.primary.kill()
        promote(self.standby)
        self.site.close()

    def check(self) -> str:
        document = json.loads(self.site.command("check", "--json").out)
        [found] = [check["message"] for check in document["checks"] if check["name"] == "failover"]
        return str(found)


@pytest.fixture
def cluster(
    start_server: Callable[..., Server],
    servers: Servers,
    fresh_database: Callable[[TestServer], str],
    tmp_path: Path,
) -> Iterator[Cluster]:
    majors = ALL_PAIRS[0].values[0]
    if majors is None:
        no_server("no PostgreSQL server: neither in the environment, nor Docker, nor programs here")
    assert isinstance(majors, tuple)
    primary, standby = start_server(18), start_server(18)
    primary.create_database("app")
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    dsn = f"postgresql://postgres:{primary.password}@{hosts}/app?target_session_attrs=primary"
    site = Site(tmp_path, dsn, fresh_database(servers.pair(*majors)[1]), "mover")
    site.fill()
    become_standby(standby, primary)
    yield Cluster(primary, standby, site)
    site.close()


@needs_18
def test_the_stream_goes_on_from_a_promoted_standby(cluster: Cluster) -> None:
    """With failover slots, and the stream held back to what the standby has: nothing lost, nothing to do."""
    site = cluster.site
    ask(cluster.primary, f"ALTER SYSTEM SET synchronized_standby_slots = '{SLOT}'")
    ask(cluster.primary, "SELECT pg_reload_conf()")
    with site.service() as service:
        site.write()
        service.wait_until_caught_up()
        assert ask(cluster.primary, "SELECT failover FROM pg_replication_slots WHERE slot_name = 'mover'") == [(True,)]
        wait_until_synced(cluster.primary, cluster.standby, site.slot)
        site.write()
        cluster.fail_over()
        site.write()
        service.wait_until_caught_up()
        assert site.value("target", "SELECT timeline FROM replicator.checkpoint") == 2
        site.write()
        service.wait_until_caught_up()
        service.stop()
    site.assert_equal()
    site.done("verify")


class Load:
    """A client that writes all the time, and connects again wherever the primary is. A context manager."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.commits = 0

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def wait_for(self, more: int) -> None:
        wanted = self.commits + more
        wait(lambda: self.commits >= wanted, "nobody can write")

    def _run(self) -> None:
        number = 10_000
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=2) as conn:
                    while not self._stop.wait(0.005):
                        number += 10  # never twice: what became of the last one nobody knows
                        self._write(conn, number)
                        self.commits += 1
            except psycopg.OperationalError:
                self._stop.wait(0.1)

    @staticmethod
    def _write(conn: psycopg.Connection[Any], first: int) -> None:
        with conn.transaction():
            conn.execute("INSERT INTO notes (id) SELECT generate_series(%s::int, %s)", [first, first + 9])
            conn.execute("UPDATE customers SET name = %s WHERE id = %s", [f"name {first}", 1 + first // 10 % 40])
            conn.execute("DELETE FROM notes WHERE id = %s", [first + 3])


@needs_18
def test_under_load_the_stream_goes_on_from_a_promoted_standby(cluster: Cluster) -> None:
    """In the middle of everything, with changes on their way on all three lines."""
    site = cluster.site
    ask(cluster.primary, f"ALTER SYSTEM SET synchronized_standby_slots = '{SLOT}'")
    ask(cluster.primary, "SELECT pg_reload_conf()")
    with site.service() as service:
        service.wait_until_caught_up()
        wait_until_synced(cluster.primary, cluster.standby, site.slot)
        with Load(site.source_dsn) as load:
            load.wait_for(200)
            cluster.fail_over()
            load.wait_for(200)
        service.wait_until_caught_up()
        assert site.value("target", "SELECT timeline FROM replicator.checkpoint") == 2
        service.stop()
    site.assert_equal()
    site.done("verify")


@needs_18
@pytest.mark.soak
def test_under_load_a_target_ahead_of_the_promoted_standby_ends_the_service(cluster: Cluster) -> None:
    """Nothing holds the stream back to what the standby has, and that has fallen behind: nothing more is applied."""
    site = cluster.site
    with site.service() as service:
        service.wait_until_caught_up()
        wait_until_synced(cluster.primary, cluster.standby, site.slot)
        with Load(site.source_dsn) as load:
            load.wait_for(100)
            ask(cluster.standby, "ALTER SYSTEM SET primary_conninfo = ''")
            ask(cluster.standby, "SELECT pg_reload_conf()")
            wait(lambda: not ask(cluster.standby, "SELECT 1 FROM pg_stat_wal_receiver"), "the standby still follows")
            load.wait_for(200)
            last = load.commits
            site.wait(lambda: site.value("target", "SELECT count(*) FROM notes") > 60 + 9 * last - 50, "no stream")
            cluster.fail_over()
            load.wait_for(200)
        service.ends(3, says=("the target is ahead of the source", "`replicator run --truncate` starts over"))
    site.done("run", "--truncate", "--yes", "--until-caught-up")
    site.assert_equal()


@needs_18
def test_a_target_that_is_ahead_of_the_promoted_standby_is_told(cluster: Cluster) -> None:
    """It has changes that the source has lost. That the new primary has passed the position by now hides nothing."""
    site = cluster.site
    with site.service() as service:
        service.wait_until_caught_up()
        wait_until_synced(cluster.primary, cluster.standby, site.slot)
        service.wait_until_caught_up()
        wait_until_replayed(cluster.primary, cluster.standby)
        # The standby loses its connection: what is written now it never sees.
        ask(cluster.standby, "ALTER SYSTEM SET primary_conninfo = ''")
        ask(cluster.standby, "SELECT pg_reload_conf()")
        wait(lambda: not ask(cluster.standby, "SELECT 1 FROM pg_stat_wal_receiver"), "the standby still follows")
        site.sql("source", "INSERT INTO notes VALUES (777, 'lost with the primary')")
        service.wait_until_caught_up()
        service.stop()
    cluster.fail_over()
    for _ in range(5):
        site.write()
    site.sql("source", "SELECT pg_switch_wal()")
    applied = site.checkpoint()
    assert site.value("source", "SELECT pg_current_wal_lsn() > %s::pg_lsn", applied)
    site.refused(3, "run", says=("the target is ahead of the source", "`replicator run --truncate` starts over"))
    site.refused(3, "snapshot", says=("the target is ahead of the source",))
    site.done("run", "--truncate", "--yes", "--until-caught-up")
    site.assert_equal()
    assert site.sql("target", "SELECT FROM notes WHERE id = 777") == []
    # The old primary comes back, and the DSN leads to it first.
    cluster.primary.start_again()
    site.close()
    site.refused(3, "run", says=("left behind by a failover", r"correct \[source\] dsn"))


@needs_18
@pytest.mark.soak
def test_without_a_failover_slot_the_slot_is_gone(cluster: Cluster) -> None:
    """Switched off, on a slot that exists: and the check says so before."""
    site = cluster.site
    site.run()
    site.of_source = "failover = false\n"
    site.run()
    assert ask(cluster.primary, "SELECT failover FROM pg_replication_slots WHERE slot_name = 'mover'") == [(False,)]
    assert "source.failover is off" in cluster.check()
    site.of_source = ""
    assert "synchronized_standby_slots is empty" in cluster.check()
    site.of_source = "failover = false\n"
    wait_until_replayed(cluster.primary, cluster.standby)
    cluster.fail_over()
    site.refused(3, "run", says=("slot mover is gone", "`replicator run --truncate` starts over"))
    site.done("run", "--truncate", "--yes", "--until-caught-up")
    site.assert_equal()


def test_a_source_that_came_back_from_an_older_copy_of_its_disk(streamed: Site) -> None:
    """The same timeline, and a position before ours: no failover, but changes are lost all the same."""
    ahead = streamed.value("source", "SELECT (pg_current_wal_lsn() + 1000000)::text")
    streamed.sql("target", "UPDATE replicator.checkpoint SET applied_lsn = %s::pg_lsn", ahead)
    streamed.refused(3, "run", says=(f"applied changes up to {ahead}", "failover or a restore", "starts over"))
    streamed.done("run", "--truncate", "--yes", "--until-caught-up")
    streamed.assert_equal()


@needs_18
def test_a_standby_as_the_source_is_waited_for(cluster: Cluster) -> None:
    """It may be about to be promoted; until then it is named for what it is."""
    with closing(connect(cluster.standby.dsn("app"), "source", purpose="test")) as conn:
        with pytest.raises(TransientError, match="it is a standby") as caught:
            require_history(conn, "", timeline=None, lsn=Lsn(0))
        assert "target_session_attrs=primary" in caught.value.hint


def test_history_files_are_read_with_all_that_they_may_hold() -> None:
    text = "1\t0/3000148\tno recovery target specified\n\n# a comment\n2\tA/FF000000\tbefore 2026-01-01\n  7\t0/7\t\n"
    assert parse_history(text) == {1: Lsn.parse("0/3000148"), 2: Lsn.parse("A/FF000000"), 7: Lsn.parse("0/7")}
    assert parse_history("") == {}
