"""Transactions that overlap on the source: applied whole, in commit order, once; around restarts too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import psycopg
import pytest

from tests.stream.case import Case

# `log` has no key: what is applied twice shows. `latest` is written right before each commit: the order shows.
DDL = """
CREATE TABLE item (id bigint PRIMARY KEY, v int, body text);
CREATE TABLE log (tx bigint, n int);
CREATE TABLE latest (one int PRIMARY KEY, tx bigint, commits int);
"""
SEED = "INSERT INTO latest VALUES (1, 0, 0);"
TABLES = ("item", "log", "latest")
_SPILL = "logical_decoding_work_mem = '64kB'"


class Writer:
    """One session on the source and its transaction, which goes on step by step."""

    def __init__(self, dsn: str) -> None:
        self.conn = psycopg.connect(dsn, autocommit=True)
        self.open = False

    def begin(self, tx: int) -> None:
        self.tx, self.n, self.open = tx, 0, True
        self.conn.execute("BEGIN")
        self.write()

    def write(self, rows: int = 1, *, savepoint: str = "") -> None:
        """``savepoint``: RELEASE, ROLLBACK TO, or none at all."""
        self.n += 1
        if savepoint:
            self.conn.execute("SAVEPOINT s")
        self.conn.execute("INSERT INTO log SELECT %s, %s FROM generate_series(1, %s)", (self.tx, self.n, rows))
        self.conn.execute(
            "INSERT INTO item SELECT %s * 100000 + i, %s, repeat('x', 100) FROM generate_series(1, %s) i"
            " ON CONFLICT (id) DO UPDATE SET v = excluded.v",
            (self.tx, self.n, rows),
        )
        if savepoint:
            self.conn.execute(f"{savepoint} SAVEPOINT s")  # type: ignore[arg-type]

    def end(self, commits: bool = True) -> None:
        self.open = False
        if commits:
            self.conn.execute("UPDATE latest SET tx = %s, commits = commits + 1", (self.tx,))
        self.conn.execute("COMMIT" if commits else "ROLLBACK")


class Writers:
    def __init__(self, dsn: str, count: int) -> None:
        self.all = [Writer(dsn) for _ in range(count)]
        self.last_tx = 0

    def next_tx(self) -> int:
        self.last_tx += 1
        return self.last_tx

    def end_all(self, random: Random) -> None:
        for writer in self.all:
            if writer.open:
                writer.end(random.random() < 0.5)
        self.close()

    def close(self) -> None:
        for writer in self.all:
            writer.conn.close()


def interleavings(transactions: int, steps: int) -> Iterator[tuple[int, ...]]:
    """Every order of the steps of so many transactions; they are alike, so that number 0 begins first, and so on."""

    def go_on(done: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(done) == transactions * steps:
            yield done
            return
        begun = len(set(done))
        for tx in range(min(begun + 1, transactions)):
            if done.count(tx) < steps:
                yield from go_on((*done, tx))

    return go_on(())


def play(writers: Writers, order: Sequence[int], steps: int, commits: Sequence[bool]) -> None:
    """The first step begins, the last one ends; each writes."""
    done = dict.fromkeys(order, 0)
    for at in order:
        writer = writers.all[at]
        if done[at] == 0:
            writer.begin(writers.next_tx())
        elif done[at] < steps - 1:
            writer.write(savepoint=("", "RELEASE", "ROLLBACK TO")[writer.tx % 3])
        else:
            writer.end(commits[at])
        done[at] += 1


def check(case: Case, writers: Writers) -> None:
    """Equal, and the effects counted: what was committed is there once."""
    case.same(*TABLES)
    [(commits,)] = case.rows("SELECT commits FROM latest")
    assert [(commits,)] == case.rows("SELECT count(DISTINCT tx) FROM log")


def test_every_order_of_begins_and_commits(make_case, random):
    """All orders of three transactions of three steps, and of four of two; some of them roll back."""
    assert (len(set(interleavings(3, 3))), len(set(interleavings(4, 2)))) == (280, 105)
    case = make_case(DDL, seed=SEED)
    writers = Writers(case.pair.source_dsn, 5)
    orders = [(order, steps) for number, steps in ((3, 3), (4, 2)) for order in interleavings(number, steps)]
    random.shuffle(orders)
    case.start()
    straddling = writers.all[4]
    for at, (order, steps) in enumerate(orders):
        if at % 100 == 50:  # a transaction that is open while the stream stops, and ends in its next life
            straddling.begin(writers.next_tx())
            case.stop()
        play(writers, order, steps, [random.random() < 0.8 for _ in range(4)])
        if at % 100 == 60:
            straddling.end()
            case.start()
    writers.close()
    check(case, writers)


@pytest.mark.parametrize("rows", [pytest.param(20_000, id="coalesced"), pytest.param(7, id="cut into parts")])
def test_dozens_of_transactions_around_restarts(make_case, random, rows):
    """Some with subtransactions, some larger than a batch, some spilled to the source's disk by decoding or sent while
    they are in progress.
    """
    churn(make_case, random, max_batch_rows=rows, steps=1000)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("rows", "steps"), [(20_000, 25_000), (1, 200), (50, 25_000)])
def test_many_more_transactions_around_restarts(make_case, random, rows, steps):
    churn(make_case, random, max_batch_rows=rows, steps=steps)


def churn(make_case: Any, random: Random, *, max_batch_rows: int, steps: int) -> None:
    case = make_case(DDL, seed=SEED, stream={"max_batch_rows": max_batch_rows})
    case.source.execute(f"ALTER DATABASE {case.source.info.dbname} SET {_SPILL}")
    try:
        writers = Writers(case.pair.source_dsn, 30)
        case.start()
        for _ in range(steps):
            step(writers, random)
            if random.random() < 0.006:
                (case.stop if case.running else case.start)()
        writers.end_all(random)
        check(case, writers)
        [large] = case.source.execute(
            "SELECT spill_txns, stream_txns FROM pg_stat_replication_slots WHERE slot_name = %s", [case.slot]
        ).fetchall()
        assert all(large), "no transaction was large enough"
        assert case.too_early
    finally:
        case.source.execute(f"ALTER DATABASE {case.source.info.dbname} RESET logical_decoding_work_mem")


def step(writers: Writers, random: Random) -> None:
    """One step of one transaction."""
    writer = random.choice(writers.all)
    chance = random.random()
    if not writer.open:
        writer.begin(writers.next_tx())
    elif chance < 0.4:
        writer.end(random.random() < 0.8)
    else:
        rows = 600 if chance > 0.97 else 1
        writer.write(rows, savepoint=random.choice(["", "", "RELEASE", "ROLLBACK TO"]))
