"""Transactions that overlap with the death of the service, or with the freeze of a cutover: each has one fate."""

from __future__ import annotations

import threading
import time
from random import Random

import psycopg
import pytest

from tests.endurance.process import say
from tests.properties.test_overlap import DDL, SEED, TABLES, Writers, step

CLIENTS = 10


@pytest.mark.timeout(600)
def test_kill_9_between_commits_of_overlapping_transactions(overlap_rig, random):
    kill_often(overlap_rig, random, kills=2)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_kill_9_many_times(overlap_rig, random):
    kill_often(overlap_rig, random, kills=30)


def kill_often(overlap_rig, random: Random, *, kills: int) -> None:
    """Transactions stay open across the deaths of the service; batches are small, so that some die in the middle."""
    rig = overlap_rig(DDL, REPLICATOR_STREAM__MAX_BATCH_ROWS="50")
    rig.ask("source", SEED.rstrip(";"))
    rig.service.start()
    rig.wait_for_stream()
    writers = Writers(rig.writers_dsn, 20)
    for _ in range(kills):
        for _ in range(random.randrange(50, 400)):
            step(writers, random)
        rig.wait_until(rig.walsender, "the stream does not begin")
        for _ in range(random.randrange(1, 200)):
            step(writers, random)
        rig.service.kill()
        for _ in range(random.randrange(0, 100)):
            step(writers, random)
        rig.service.start()
    writers.end_all(random)
    rig.wait_until_drained()
    rig.assert_same(*TABLES)
    assert rig.ask("target", "SELECT commits FROM latest") == rig.ask("target", "SELECT count(DISTINCT tx) FROM log")


class Client(threading.Thread):
    """Writes one transaction after the other, whatever happens, and knows the fate of each."""

    def __init__(self, dsn: str, number: int, seed: int, stop: threading.Event) -> None:
        super().__init__(name=f"client {number}", daemon=True)
        self.dsn, self.random, self.halt = dsn, Random(seed), stop
        self.tx = number * 1_000_000
        self.committed: set[int] = set()
        self.not_committed: set[int] = set()
        self.unknown: set[int] = set()  # the answer to COMMIT did not come
        self.errors: list[str] = []

    def run(self) -> None:
        while not self.halt.is_set():
            try:
                with psycopg.connect(self.dsn, autocommit=True, connect_timeout=10) as conn:
                    while not self.halt.is_set():
                        self._transaction(conn)
            except psycopg.Error as exc:
                self.errors.append(type(exc).__name__)
                time.sleep(0.05)

    def _transaction(self, conn: psycopg.Connection) -> None:
        self.tx += 1
        try:
            conn.execute("BEGIN")
            self._pause()
            for n in range(self.random.randrange(1, 4)):
                conn.execute("SAVEPOINT s")
                conn.execute("INSERT INTO log VALUES (%s, %s)", (self.tx, n))
                conn.execute("INSERT INTO item VALUES (%s * 10 + %s)", (self.tx, n))
                back = n > 0 and self.random.random() < 0.3
                conn.execute("ROLLBACK TO SAVEPOINT s" if back else "RELEASE SAVEPOINT s")
                self._pause()
        except psycopg.Error:
            self.not_committed.add(self.tx)
            raise
        if self.random.random() < 0.2:
            self.not_committed.add(self.tx)
            conn.execute("ROLLBACK")
            return
        try:
            conn.execute("COMMIT")
        except psycopg.Error:
            self.unknown.add(self.tx)
            raise
        self.committed.add(self.tx)

    def _pause(self) -> None:
        time.sleep(self.random.choice([0, 0, 0.01, 0.1, 0.4]))


@pytest.mark.timeout(600)
def test_transactions_around_the_fence_have_one_fate(overlap_rig, random):
    """Committed before the fence: on the target. Otherwise never anywhere; and who wrote it was told so."""
    rig = overlap_rig(DDL)
    rig.ask("source", SEED.rstrip(";"))
    rig.service.start()
    stop = threading.Event()
    clients = [Client(rig.writers_dsn, n, random.randrange(1 << 30), stop) for n in range(1, CLIENTS + 1)]
    for client in clients:
        client.start()
    rig.wait_until_near()
    with psycopg.connect(rig.writers_dsn) as early, psycopg.connect(rig.writers_dsn) as late:
        late.execute("SELECT 1")  # has begun, and writes once it is too late
        early.execute("INSERT INTO log VALUES (1, 1)")  # holds the freeze up until it ends
        commit = threading.Timer(1.0, early.commit)
        commit.start()
        report = rig.cutover()
        commit.join()
        with pytest.raises(psycopg.Error):
            late.execute("INSERT INTO log VALUES (2, 2)")
            late.commit()
    time.sleep(0.5)  # they go on trying
    stop.set()
    for client in clients:
        client.join(30)
        assert not client.is_alive()
    assert_one_fate(rig, clients)
    assert not report["writes_after_fence"]


def assert_one_fate(rig, clients: list[Client]) -> None:
    there = [{tx for (tx,) in rig.ask(side, "SELECT tx FROM log")} for side in ("source", "target")]
    assert there[0] == there[1]
    committed = {1}.union(*(client.committed for client in clients))
    not_committed = {2}.union(*(client.not_committed for client in clients))
    unknown: set[int] = set().union(*(client.unknown for client in clients))
    say(f"{len(committed)} committed, {len(not_committed)} not, {len(unknown)} of which nobody knows")
    assert committed <= there[1]
    assert not not_committed & there[1]
    assert there[1] <= committed | unknown
    assert all(client.errors for client in clients), "somebody was not told"
    rows = [sorted(rig.ask(side, "SELECT tx, n FROM log")) for side in ("source", "target")]
    assert rows[0] == rows[1]
    items = [sorted(rig.ask(side, "SELECT id FROM item")) for side in ("source", "target")]
    assert items[0] == items[1]
