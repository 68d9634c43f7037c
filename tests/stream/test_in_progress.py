"""Large transactions that come while they are in progress: what may be applied ahead of their commit, what may not."""

from __future__ import annotations

import psycopg
import pytest

from replicator import pgoutput
from replicator.errors import ProtocolError, TooEarly, TransientError
from replicator.model.lsn import Lsn
from replicator.routing.idmap import IdMaps, MapSpec, OnUnmapped
from replicator.stream.batch import Batch
from tests.conftest import ALL_PAIRS
from tests.routing.tables import TEXT, UUID, column, route, table
from tests.stream.case import Case
from tests.stream.made import Wire, relation_of, row, shown

T = table("t", [column("id"), column("v")], key=("id",))
U = table("u", [column("id"), column("v")], key=("id",))
NAME = ("public", "t")
XID = 7


def start(xid=XID, *, first=True):
    return pgoutput.StreamStart(xid, first)


STOP = pgoutput.StreamStop()


def commit(lsn, xid=XID):
    return pgoutput.StreamCommit(xid, pgoutput.Commit(0, Lsn(lsn), Lsn(lsn + 8), 5))


def wire_of(*tables, **options):
    return Wire([route(each, each) for each in tables or (T,)], **options)


def fed(wire, *messages):
    """What the assembler gives away for these."""
    return [batch for message in messages if (batch := wire.send(message)) is not None]


# ── the assembler ──────────────────────────────────────────────────────────────────────────────────────


def test_its_parts_are_given_away_before_it_commits():
    wire = wire_of(part_rows=2)
    assert not wire.assembler.in_stream
    parts = fed(wire, start(), relation_of(T), *(wire.insert(i, 0) for i in range(3)))
    assert wire.assembler.in_stream
    parts += fed(wire, STOP)
    assert not wire.assembler.in_stream
    assert wire.assembler.in_transaction
    assert wire.assembler.keepalive(Lsn(500)) is None, "the position must not move past it"
    parts += fed(wire, start(first=False), *(wire.insert(i, 0) for i in range(3, 5)), STOP)
    assert fed(wire, commit(100)) == []
    last = wire.assembler.take()
    assert [(len(b.events), b.in_progress, b.complete, b.final_part, b.end_lsn) for b in [*parts, last]] == [
        (2, True, False, False, 0), (2, True, False, True, 0), (1, False, True, True, 108)
    ]  # fmt: skip
    assert [r[0] for b in [*parts, last] for _, _, _, r in shown(b)] == [row(i)[0] for i in range(5)]
    assert last.ends == [(1, Lsn(100))]
    assert len(wire.transaction(110, wire.insert(9, 0)).events) == 1


def test_a_small_one_is_one_batch_of_its_commit():
    wire = wire_of()
    assert fed(wire, start(), wire.insert(1, 0), STOP, commit(100)) == []
    batch = wire.assembler.take()
    assert (batch.in_progress, batch.complete, batch.final_part, batch.ends) == (False, True, False, [(1, Lsn(100))])


def test_what_committed_before_is_given_away_first():
    wire = wire_of(part_rows=2)
    wire.begin(50)
    wire.send(wire.insert(1, 0))
    wire.send(pgoutput.Commit(0, Lsn(50), Lsn(58), 5))
    parts = fed(wire, start(), *(wire.insert(i, 0) for i in range(2, 6)))
    assert [(b.in_progress, b.end_lsn) for b in parts] == [(False, 58), (True, 0)]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (pgoutput.Begin(Lsn(90), 5, 8), "another transaction has committed first"),
        (start(8), "another transaction in progress"),
        (pgoutput.StreamAbort(XID, XID), "rolled back"),
        (pgoutput.StreamAbort(XID, 9), "rolled back"),
    ],
)
def test_anything_else_in_between_is_too_early(message, why):
    wire = wire_of()
    fed(wire, start(), wire.insert(1, 0), STOP)
    with pytest.raises(TooEarly, match=why):
        wire.send(message)


def test_an_altered_table_is_too_early():
    wire = wire_of()
    wider = relation_of(table("t", [column("id"), column("v", TEXT)], key=("id",)))
    fed(wire, start(), relation_of(T), wire.insert(1, 0))
    with pytest.raises(TooEarly, match="t: the transaction alters it"):
        wire.send(wider)
    assert not wire.relations.altered


def test_a_relation_that_no_route_takes_is_too_early_with_its_first_row():
    wire = wire_of()
    stranger = table("stranger", [column("id")], key=("id",))
    fed(wire, start(), relation_of(stranger))
    with pytest.raises(TooEarly, match="which no route takes"):
        wire.send(pgoutput.Insert(stranger.oid, row(1)))


@pytest.mark.parametrize("change", ["insert", "update", "delete", "truncate"])
def test_rows_that_a_later_snapshot_may_hold_are_too_early(change):
    """Whether they are skipped depends on the commit: before the table's snapshot, or behind it."""
    wire = wire_of(T, U, snapshot_lsns={NAME: Lsn(200)}, applied=100)
    message = getattr(wire, change)(*(() if change == "truncate" else (1, 0)))
    fed(wire, start(), relation_of(T), relation_of(U), wire.insert(1, 0, of=1))
    with pytest.raises(TooEarly, match="depends on the commit"):
        wire.send(message)


def test_rows_of_a_snapshot_that_is_over_are_not():
    wire = wire_of(snapshot_lsns={NAME: Lsn(100)}, applied=100)
    fed(wire, start(), wire.insert(1, 0), STOP, commit(100))
    assert len(wire.assembler.take().events) == 1


@pytest.mark.parametrize("change", ["insert", "truncate"])
def test_a_lookup_that_it_changes_is_too_early_and_stays_as_it_was(change):
    """Its entries hold at once, also for rows of others that are mapped again meanwhile."""
    people = table("people", [column("id", UUID), column("n", TEXT)], key=("id",))
    spec = MapSpec("l", frozenset({("public", "t", "v")}), OnUnmapped.NULL, ("public", "people"), "n", "id")
    wire = wire_of(people, maps=IdMaps({"l": {"a": "00000000-0000-0000-0000-000000000001"}}), lookups=[spec])
    before = dict(wire.maps.entries("l"))
    message = wire.truncate() if change == "truncate" else wire.insert(bytes(20), b"\0\0\0\1b")
    fed(wire, start())
    with pytest.raises(TooEarly, match="ID map"):
        wire.send(message)
    assert dict(wire.maps.entries("l")) == before


def test_an_id_without_a_target_id_is_too_early_to_stop_for():
    spec = MapSpec("users", frozenset({("public", "o", "owner")}), OnUnmapped.STOP)
    owned = table("o", [column("id"), column("owner", UUID)], key=("id",))
    wire = Wire([route(owned, owned, maps=[spec])], maps=IdMaps({"users": {}}))
    fed(wire, start())
    with pytest.raises(TooEarly):
        wire.send(wire.insert(1, (16).to_bytes(4, "big") + bytes(16)))


@pytest.mark.parametrize(
    "messages",
    [
        [start(first=False)],
        [STOP],
        [commit(100)],
        [pgoutput.StreamAbort(XID, XID)],
        [start(), start()],
        [start(), start(first=False)],
        [start(), commit(100)],
        [start(), pgoutput.StreamAbort(XID, XID)],
        [start(), STOP, start()],
        [start(), STOP, start(8, first=False)],
        [start(), STOP, commit(100, 8)],
        [start(), STOP, commit(40)],
        [start(), STOP, pgoutput.Commit(0, Lsn(0), Lsn(1), 5)],
        [pgoutput.Begin(Lsn(70), 5, 1), start()],
    ],
    ids=str,
)
def test_an_order_that_the_protocol_does_not_allow(messages):
    wire = wire_of(applied=50)
    with pytest.raises(ProtocolError):
        fed(wire, *messages)


# ── real servers ───────────────────────────────────────────────────────────────────────────────────────

DDL = "CREATE TABLE big (id int PRIMARY KEY, v int, body text); CREATE TABLE small (id int PRIMARY KEY, v int);"
SEED = "INSERT INTO big SELECT i, 0, 'old' FROM generate_series(1, 500) i; INSERT INTO small VALUES (1, 0);"
# Some hundred kilobytes, of which the source keeps 64 before it sends them.
MUCH = (
    "INSERT INTO big SELECT i, 1, repeat('x', 100) FROM generate_series(1001, 4000) i",
    "UPDATE big SET v = 2 WHERE id % 3 = 0",
    "DELETE FROM big WHERE id % 7 = 0",
)


class Giant:
    """A session on the source with a transaction that takes its time."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.conn = psycopg.connect(case.pair.source_dsn)

    def write(self, *statements: str) -> None:
        for statement in statements:
            self.conn.execute(statement)
        self.case.source.execute("SELECT pg_switch_wal()")  # only what is flushed is decoded

    def wait_until_applied(self) -> None:
        """Rows of it are in the target's open transaction."""
        self.case.wait(lambda: self.case.stream.is_ahead, "the transaction in progress to be applied")

    def close(self) -> None:
        self.conn.close()


@pytest.fixture
def ahead(make_case):
    """``ahead(**options)`` → a case whose source sends what is in progress, and a session for that."""
    made = []

    def make(ddl=DDL, target_ddl=None, **options):
        options.setdefault("seed", SEED)
        case = make_case(ddl, target_ddl, stream={"max_batch_rows": 100} | options.pop("stream", {}), **options)
        name = case.source.info.dbname
        case.source.execute(f"ALTER DATABASE {name} SET logical_decoding_work_mem = '64kB'")
        case.drain()
        giant = Giant(case)
        made.append((giant, case, name))
        return case, giant

    yield make
    for giant, case, name in made:
        giant.close()
        case.source.execute(f"ALTER DATABASE {name} RESET logical_decoding_work_mem")


def streamed(case) -> int:
    """How many transactions the source has sent while they were in progress."""
    [(count,)] = case.source.execute(
        "SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = %s", [case.slot]
    ).fetchall()
    return count


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_it_is_applied_while_it_is_in_progress_and_seen_once_it_has_committed(ahead):
    case, giant = ahead()
    before = case.rows("SELECT * FROM big ORDER BY id")
    giant.write(*MUCH)
    giant.wait_until_applied()
    assert case.rows("SELECT * FROM big ORDER BY id") == before
    giant.write("UPDATE big SET v = 3 WHERE id < 2000")
    giant.conn.commit()
    case.same("big", "small")
    assert case.too_early == []
    assert streamed(case) == 1
    applied = case.checkpoint().applied_lsn
    case.stop()
    assert case.checkpoint().applied_lsn >= applied
    case.same("big", "small")


@pytest.mark.parametrize("end", ["rollback", "savepoint"])
def test_what_it_takes_back_is_taken_back(ahead, end):
    case, giant = ahead()
    giant.write("SAVEPOINT s", *MUCH)
    giant.wait_until_applied()
    if end == "rollback":
        giant.conn.rollback()
    else:
        giant.write("ROLLBACK TO s", "INSERT INTO big VALUES (9999, 9, 'kept')")
        giant.conn.commit()
    case.same("big", "small")
    assert len(case.too_early) == 1
    assert len(case.rows("SELECT FROM big WHERE id = 9999")) == (end == "savepoint")


def test_what_commits_meanwhile_is_applied_first(ahead):
    case, giant = ahead()
    giant.write(*MUCH)
    giant.wait_until_applied()
    case.execute("UPDATE small SET v = 5")
    case.wait(lambda: case.rows("SELECT v FROM small") == [(5,)], "the other transaction")
    assert case.too_early == ["another transaction has committed first"]
    assert case.rows("SELECT max(v) FROM big") == [(0,)]
    giant.write("UPDATE small SET v = v + 1")
    giant.conn.commit()
    case.same("big", "small")
    assert case.rows("SELECT v FROM small") == [(6,)]


def test_one_that_does_not_go_on_gives_the_target_free(ahead, monkeypatch):
    """The target's transaction holds locks, and the state schema is not looked at meanwhile."""
    monkeypatch.setattr("replicator.stream.run._PATIENCE_S", 0.5)
    case, giant = ahead()
    giant.write(*MUCH)
    giant.wait_until_applied()
    case.wait(lambda: case.too_early == ["the source does not go on with it"], "the end of patience")
    giant.conn.commit()
    case.same("big")


def test_nothing_else_may_come_between_its_parts(ahead):
    """It would be committed, and with it what is there of the transaction."""
    case, giant = ahead()
    giant.write(*MUCH)
    giant.wait_until_applied()
    case.stream._inbox.put(Batch(end_lsn=case.source_lsn()))
    case.fails(ProtocolError)
    assert case.rows("SELECT max(v) FROM big") == [(0,)]
    giant.conn.commit()
    case.same("big", "small")


def test_a_stop_in_the_middle_leaves_nothing_behind(ahead):
    case, giant = ahead()
    giant.write(*MUCH)
    giant.wait_until_applied()
    case.stop()
    assert case.rows("SELECT max(v) FROM big") == [(0,)]
    giant.write("UPDATE small SET v = 4")
    giant.conn.commit()
    case.same("big", "small")
    assert case.too_early == []


def test_a_connection_lost_in_the_middle_leaves_nothing_behind(ahead):
    case, giant = ahead()
    giant.write(*MUCH)
    giant.wait_until_applied()
    case.source.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s",
                        [case.slot])  # fmt: skip
    case.fails(TransientError)
    assert case.rows("SELECT max(v) FROM big") == [(0,)]
    giant.conn.commit()
    case.same("big", "small")


def test_a_row_that_the_target_refuses_is_told_once_it_has_committed(ahead):
    """Set aside with the LSN of its commit, and not at all if it is rolled back."""
    case, giant = ahead(stream={"on_rejected_row": "quarantine"})
    case.target.execute("ALTER TABLE big ADD CHECK (id <> 1500)")
    giant.write(*MUCH)
    case.wait(lambda: len(case.too_early) == 1, "the refusal")
    giant.conn.rollback()
    case.drain()
    assert case.rows("SELECT count(*) FROM replicator.quarantine") == [(0,)]
    giant.write(*MUCH)
    before = case.source_lsn()
    giant.conn.commit()
    case.same("big", source_where="id <> 1500")
    found = case.rows("SELECT key::text, lsn::text FROM replicator.quarantine")
    assert {key for key, _ in found} == {"{1500}"}
    assert all(Lsn.parse(lsn) >= before for _, lsn in found)


def test_a_table_that_it_alters_is_as_altered_once_it_has_committed(ahead):
    """On the target the column is there before; on the source it comes, and goes again, with the transaction."""
    case, giant = ahead(DDL, DDL.replace("body text)", "body text, w int DEFAULT 8)", 1))
    giant.write(*MUCH, "ALTER TABLE big ADD COLUMN w int DEFAULT 8", "UPDATE big SET w = 9 WHERE id % 2 = 0")
    case.wait(lambda: "alters it" in "".join(case.too_early), "the new relation")
    giant.conn.rollback()
    case.drain()
    giant.write(*MUCH)
    giant.conn.commit()
    case.same("big", columns=["id", "v", "body"])


def test_truncate_and_the_rows_behind_it(ahead):
    case, giant = ahead()
    giant.write("TRUNCATE big, small", *MUCH, "INSERT INTO small VALUES (2, 2)")
    giant.wait_until_applied()
    giant.conn.commit()
    case.same("big", "small")
    assert case.too_early == []
