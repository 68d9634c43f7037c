"""Messages of the stream become batches: what is skipped, what is cut, what is refused."""

from __future__ import annotations

import pytest

from replicator import pgoutput
from replicator.errors import ProtocolError, SchemaMismatch, UnmappedId
from replicator.model.lsn import Lsn
from replicator.model.row import UNCHANGED
from replicator.routing.idmap import IdMaps, MapSpec, OnUnmapped, Unmapped
from replicator.stream.assembler import Position
from replicator.stream.batch import Truncation, Unmap
from tests.routing.tables import TEXT, column, route, table, text
from tests.stream import fuzz_assembler
from tests.stream.made import Wire, relation_of, row, shown

T = table("t", [column("id"), column("v")], key=("id",))
PLAIN = route(T, T)
NAME = ("public", "t")


def keyless(name="log"):
    made = table(name, [column("id"), column("v")], identity="f")
    return route(made, made)


def test_a_transaction_becomes_a_batch():
    wire = Wire([PLAIN])
    batch = wire.transaction(100, wire.insert(1, 2), wire.update(1, 3), wire.delete(1, None))
    assert shown(batch) == [
        ("insert", "t", None, row(1, 2)), ("update", "t", None, row(1, 3)), ("delete", "t", row(1), None)
    ]  # fmt: skip
    assert (batch.end_lsn, batch.commit_time, batch.transactions) == (108, 5, 1)
    assert batch.complete
    assert not batch.final_part
    assert batch.size > 30


def small(wire, commit_lsn, *values):
    """One insert in a transaction of its own; what the assembler gives away for it."""
    wire.begin(commit_lsn)
    assert wire.send(wire.insert(*values)) is None
    return wire.send(pgoutput.Commit(0, Lsn(commit_lsn), Lsn(commit_lsn + 8), commit_lsn))


def test_small_transactions_are_gathered_until_somebody_takes_them():
    wire = Wire([PLAIN])
    assert [small(wire, lsn, lsn, 0) for lsn in (100, 110, 120)] == [None] * 3
    batch = wire.assembler.take()
    assert [r for _, _, _, r in shown(batch)] == [row(lsn, 0) for lsn in (100, 110, 120)]
    assert (batch.transactions, batch.end_lsn, batch.commit_time, batch.complete) == (3, 128, 120, True)
    assert batch.ends == [(1, 100), (2, 110), (3, 120)]
    assert wire.assembler.take() is None


def test_what_is_taken_in_mid_transaction_ends_before_it():
    wire = Wire([PLAIN])
    small(wire, 100, 1, 0)
    wire.begin(110)
    wire.send(wire.insert(2, 0))
    batch = wire.assembler.take()
    assert (shown(batch), batch.end_lsn, batch.complete) == ([("insert", "t", None, row(1, 0))], 108, True)
    assert wire.assembler.take() is None
    assert shown(wire.commit()) == [("insert", "t", None, row(2, 0))]


def test_a_batch_that_is_full_is_given_away_with_the_transaction_that_no_longer_fits():
    wire = Wire([PLAIN], part_rows=2)
    assert small(wire, 100, 1, 0) is None
    assert small(wire, 110, 2, 0) is None
    full = small(wire, 120, 3, 0)
    assert (len(full.events), full.end_lsn) == (2, 118)
    assert [r for _, _, _, r in shown(wire.assembler.take())] == [row(3, 0)]


def test_before_a_giant_transaction_is_cut_those_in_front_of_it_are_given_away():
    """Behind a part comes the rest of its own transaction, and nothing else."""
    wire = Wire([PLAIN], part_rows=2)
    small(wire, 100, 1, 0)
    wire.begin(110)
    given = [batch for i in range(5) if (batch := wire.send(wire.insert(10 + i, 0))) is not None]
    last = wire.commit()
    assert [(b.complete, b.end_lsn, b.final_part) for b in [*given, last]] == [
        (True, 108, False), (False, 0, False), (False, 0, True), (True, 118, True)
    ]  # fmt: skip
    assert [r[0] for b in [*given, last] for _, _, _, r in shown(b)] == [row(i)[0] for i in (1, 10, 11, 12, 13, 14)]
    small(wire, 120, 9, 0)
    assert not wire.assembler.take().final_part


def test_a_fault_leaves_the_transactions_in_front_of_it():
    wire = Wire([PLAIN])
    small(wire, 100, 1, 0)
    wire.begin(110)
    wire.send(wire.insert(2, 0))
    with pytest.raises(SchemaMismatch):
        wire.send(wire.insert(3))
    batch = wire.assembler.take()
    assert (len(batch.events), batch.end_lsn) == (1, 108)


def test_a_keepalive_behind_gathered_transactions_moves_their_end():
    wire = Wire([PLAIN])
    small(wire, 100, 1, 0)
    assert wire.assembler.keepalive(Lsn(200)) is None
    assert wire.assembler.take().end_lsn == 200


def test_invariant_5_transactions_are_skipped_by_their_commit_alone():
    """A began before B and commits after it: A's changes lie before B's commit in the WAL, and still are news."""
    wire = Wire([PLAIN], applied=108)
    done = wire.transaction(100, wire.insert(1, 1))
    assert (done.events, done.transactions, done.end_lsn) == ([], 0, 108)
    wire.send(pgoutput.LogicalMessage(False, Lsn(50), "x", b""))
    fresh = wire.transaction(108, wire.insert(2, 2))
    assert (len(fresh.events), fresh.transactions, fresh.end_lsn) == (1, 1, 116)


def test_a_skipped_transaction_leaves_no_trace():
    lookup = MapSpec("l", frozenset({("public", "t", "v")}), OnUnmapped.STOP, ("public", "t"), "id", "v")
    wire = Wire([PLAIN], applied=1000, lookups=[lookup], part_rows=1)
    batch = wire.transaction(
        100, wire.insert(1, 1), wire.update(1, 2), wire.delete(1, None), wire.truncate(),
        pgoutput.LogicalMessage(True, Lsn(50), "other", b"fence:x"),
    )  # fmt: skip
    assert (batch.events, batch.map_changes, batch.unmapped, batch.fence) == ([], {}, set(), None)
    assert dict(wire.maps.entries("l")) == {}


def test_invariant_9_each_table_skips_what_its_own_snapshot_holds():
    other = table("u", [column("id"), column("v")], key=("id",))
    wire = Wire([PLAIN, route(other, other)], snapshot_lsns={NAME: Lsn(200)})
    early = wire.transaction(
        198, wire.insert(1, 1), wire.update(1, 2), wire.delete(1, None), wire.insert(1, 1, of=1), wire.truncate(0, 1)
    )
    assert shown(early) == [("insert", "u", None, row(1, 1))]
    assert [str(t) for t in early.events[-1].tables] == ["u"]
    assert wire.transaction(199, wire.truncate(0)).events == []
    assert len(wire.transaction(200, wire.insert(1, 1), wire.truncate(0)).events) == 2


def test_a_keepalive_in_mid_transaction_says_nothing():
    wire = Wire([PLAIN])
    assert wire.assembler.keepalive(Lsn(50)) == Position(Lsn(50))
    wire.begin(100)
    assert wire.assembler.in_transaction
    assert wire.assembler.keepalive(Lsn(60)) is None
    wire.send(wire.insert(1, 1))
    assert wire.assembler.keepalive(Lsn(60)) is None
    wire.commit()
    assert not wire.assembler.in_transaction
    assert wire.assembler.keepalive(Lsn(120)) == Position(Lsn(120))


@pytest.mark.parametrize("limits", [{"part_rows": 10}, {"part_bytes": 4000}])
def test_a_giant_transaction_is_cut_into_parts(limits):
    wire = Wire([PLAIN], **limits)
    wire.begin(100)
    parts = []
    for i in range(35):
        part = wire.send(wire.insert(i, i))
        if part is not None:
            parts.append(part)
    last = wire.commit()
    assert len(parts) >= 3
    assert [p.complete for p in parts] == [False] * len(parts)
    assert all(p.end_lsn == 0 and p.transactions == 0 for p in parts)
    assert (last.complete, last.final_part, last.transactions, last.end_lsn) == (True, True, 1, 108)
    assert [r for p in [*parts, last] for _, _, _, r in shown(p)] == [row(i, i) for i in range(35)]
    if "part_rows" in limits:
        assert {len(p.events) for p in parts} == {10}


def test_a_transaction_that_ends_where_it_would_be_cut():
    wire = Wire([PLAIN], part_rows=2)
    wire.begin(100)
    assert wire.send(wire.insert(1, 1)) is None
    assert wire.send(wire.insert(2, 2)) is not None
    last = wire.commit()
    assert (last.events, last.final_part, last.complete) == ([], True, True)


def test_a_fence_is_read_from_its_own_kind_of_message_only():
    wire = Wire([PLAIN])

    def message(prefix, content, transactional=True):
        return pgoutput.LogicalMessage(transactional, Lsn(90), prefix, content)

    assert wire.transaction(100, message("replicator", b"fence:abc")).fence == "abc"
    assert wire.transaction(110, message("replicator", b"heartbeat"), message("app", b"fence:abc")).fence is None
    assert wire.send(message("replicator", b"fence:abc", transactional=False)) is None


def test_a_fence_of_an_early_part_is_told_by_the_end_of_its_transaction():
    """Before that nothing is committed."""
    wire = Wire([PLAIN], part_rows=1)
    wire.begin(100)
    wire.send(pgoutput.LogicalMessage(True, Lsn(90), "replicator", b"fence:abc"))
    assert wire.send(wire.insert(1, 1)) is not None
    assert wire.send(wire.insert(2, 2)) is not None
    assert wire.commit().fence == "abc"


def test_updates_in_all_their_forms():
    wire = Wire([PLAIN, keyless()])
    batch = wire.transaction(
        100,
        wire.update(1, UNCHANGED),
        wire.update(2, 5, old=row(1, None)),
        wire.update(UNCHANGED, 5, old=row(3, None)),
        wire.update(4, UNCHANGED, old=row(4, 9), key=False),
        wire.update(5, UNCHANGED, old=row(4, 9), key=False),
        wire.update(1, UNCHANGED, old=row(1, 8), key=False, of=1),
        wire.delete(1, 8, key=False, of=1),
        wire.delete(1, 8, key=False),
    )
    assert shown(batch) == [
        ("update", "t", None, row(1, UNCHANGED)),
        ("update", "t", row(1), row(2, 5)),
        ("update", "t", None, row(3, 5)),
        ("update", "t", None, row(4, 9)),
        ("update", "t", row(4), row(5, 9)),
        ("update", "log", row(1, 8), row(1, 8)),
        ("delete", "log", row(1, 8), None),
        ("delete", "t", row(1), None),
    ]


def test_changes_that_a_route_cannot_take_are_refused():
    wire = Wire([PLAIN, keyless()])
    wire.begin(100)
    for message, fault in [
        (wire.insert(1, UNCHANGED), "row filter"),
        (wire.update(1, 2, of=1), "without its old row"),
        (wire.insert(1), "a row of 1 fields, its relation has 2"),
        (wire.update(1, 2, 3), "a row of 3 fields"),
        (wire.update(1, UNCHANGED, old=row(1)), "a row of 1 fields"),
        (wire.delete(1), "a row of 1 fields"),
    ]:
        with pytest.raises(SchemaMismatch, match=fault):
            wire.send(message)


def test_messages_out_of_order_are_refused():
    wire = Wire([PLAIN])
    for message in (wire.insert(1, 1), wire.update(1, 1), wire.delete(1, None), wire.truncate(),
                    pgoutput.Commit(0, Lsn(1), Lsn(2), 0),
                    pgoutput.LogicalMessage(True, Lsn(1), "replicator", b"x")):  # fmt: skip
        with pytest.raises(ProtocolError, match="outside of a transaction"):
            wire.send(message)
    wire.begin(100)
    with pytest.raises(ProtocolError, match="inside the transaction of 0/64"):
        wire.begin(200)
    with pytest.raises(ProtocolError, match="ends the transaction of 0/64"):
        wire.send(pgoutput.Commit(0, Lsn(101), Lsn(108), 0))
    with pytest.raises(ProtocolError, match="before its RELATION"):
        wire.send(pgoutput.Insert(1, row(1)))


def test_a_relation_without_a_route_is_refused_with_its_first_row():
    """A partition is announced besides its root, and sends no rows of its own."""
    wire = Wire([PLAIN])
    wire.begin(100)
    wire.send(pgoutput.Relation(77, "public", "t_2024", "d", ()))
    wire.send(wire.insert(1, 1))
    for message in (pgoutput.Insert(77, ()), pgoutput.Truncate((77,), False, False)):
        with pytest.raises(SchemaMismatch, match="brings rows of t_2024, which no route takes"):
            wire.send(message)


def test_a_table_that_no_route_takes_is_refused_with_its_first_row():
    wire = Wire([PLAIN])
    wire.begin(100)
    wire.send(relation_of(T, name="other", oid=1))
    with pytest.raises(SchemaMismatch, match="other, which no route takes"):
        wire.send(pgoutput.Insert(1, row(1, 1)))


def test_truncation_keeps_its_tables_together():
    other = table("u", [column("id"), column("v")], key=("id",))
    wire = Wire([PLAIN, route(other, other)])
    [event] = wire.transaction(100, wire.truncate(0, 1, restart=True)).events
    assert isinstance(event, Truncation)
    assert ([str(t) for t in event.tables], event.restart_identity) == (["t", "u"], True)


# ── ID maps ────────────────────────────────────────────────────────────────────────────────────────────

PEOPLE = table("people", [column("id"), column("login", TEXT)], key=("id",))
NOTE = table("note", [column("id"), column("who", TEXT)], key=("id",))


def mapped(policy):
    """``note.who`` by way of the map `users`."""
    spec = MapSpec("users", frozenset({("public", "note", "who")}), policy)
    return Wire([route(NOTE, NOTE, maps=[spec])], maps=IdMaps({"users": {"a": "A"}}), part_rows=2)


def test_unmapped_ids_are_told_with_the_batch_that_met_them():
    wire = mapped(OnUnmapped.NULL)
    wire.begin(100)
    wire.send(wire.insert(1, text("x")))
    part = wire.send(wire.insert(2, text("a")))
    assert part is not None
    assert part.unmapped == {Unmapped("users", ("public", "note"), "who", "x")}
    wire.send(wire.insert(3, text("y")))
    wire.send(relation_of(NOTE))
    last = wire.commit()
    assert {one.source_id for one in last.unmapped} == {"y"}
    assert wire.transaction(200, wire.insert(4, text("a"))).unmapped == set()


def test_policy_stop_names_the_ids_with_its_error():
    wire = mapped(OnUnmapped.STOP)
    wire.begin(100)
    with pytest.raises(UnmappedId) as caught:
        wire.send(wire.insert(1, text("x")))
    assert caught.value.unmapped == {Unmapped("users", ("public", "note"), "who", "x")}


def followed(**options):
    """``note.who`` is looked up in `people`: login → id."""
    spec = MapSpec(
        "person", frozenset({("public", "note", "who")}), OnUnmapped.NULL, ("public", "people"), "login", "id"
    )
    source = table("note", [column("id"), column("who", TEXT)], key=("id",))
    target = table("note", [column("id"), column("who", TEXT)], key=("id",))
    return Wire([route(PEOPLE, PEOPLE), route(source, target, maps=[spec])], lookups=[spec], **options)


def changes(batch):
    return {source_id: target_id for (_, source_id), target_id in batch.map_changes.items()}


def test_lookups_are_followed_by_later_rows_of_the_same_transaction():
    wire = followed()
    batch = wire.transaction(
        100, wire.insert(7, text("ann")), wire.insert(1, text("ann"), of=1), wire.update(7, text("ben")),
        wire.insert(2, text("ann"), of=1), wire.insert(3, text("ben"), of=1), wire.delete(7, None),
        wire.insert(4, text("ben"), of=1),
    )  # fmt: skip
    notes = [r for _, name, _, r in shown(batch) if name == "note"]
    assert [r[1] for r in notes] == [text("7"), b"\xff\xff\xff\xff", text("7"), b"\xff\xff\xff\xff"]
    assert changes(batch) == {"ann": None, "ben": None}
    kinds = [type(event).__name__ if not isinstance(event, tuple) else event[0].value for event in batch.events]
    assert kinds == ["insert", "insert", "Unmap", "update", "insert", "insert", "Unmap", "delete", "insert"]
    assert {one.source_id for one in batch.unmapped} == {"ann", "ben"}


def test_lookups_follow_a_truncation_and_a_changed_value():
    wire = followed()
    wire.transaction(100, wire.insert(7, text("ann")), wire.insert(8, text("ben")), wire.insert(9, None))
    moved = wire.transaction(110, wire.update(70, text("ann"), old=row(7, None)))
    assert changes(moved) == {"ann": "70"}
    assert [(e.source_id, e.target_id) for e in moved.events if isinstance(e, Unmap)] == [("ann", "7")]
    emptied = wire.transaction(120, wire.truncate(0))
    assert changes(emptied) == {"ann": None, "ben": None}
    assert isinstance(emptied.events[-1], Truncation)
    assert len([e for e in emptied.events if isinstance(e, Unmap)]) == 2


def test_a_lookup_is_followed_also_where_its_rows_are_in_a_later_snapshot():
    """Its entries are as of the slot's position, not of the table's own snapshot: truncation included."""
    wire = followed(snapshot_lsns={("public", "people"): Lsn(1000)})
    assert changes(wire.transaction(100, wire.insert(7, text("ann")))) == {"ann": "7"}
    assert changes(wire.transaction(110, wire.update(7, text("ben")))) == {"ann": None, "ben": "7"}
    assert changes(wire.transaction(120, wire.delete(7, None))) == {"ben": None}
    wire.transaction(130, wire.insert(8, text("eve")))
    batch = wire.transaction(140, wire.truncate(0))
    assert changes(batch) == {"eve": None}
    assert not [e for e in batch.events if isinstance(e, Truncation)]
    assert shown(batch) == []


def test_an_id_that_was_missed_and_comes_later_asks_for_a_remap():
    wire = followed(unmapped_before=[("person", "ann")])
    assert wire.transaction(90, wire.insert(6, text("zoe"))).remap is False
    assert wire.transaction(100, wire.insert(7, text("ann"))).remap is True
    wire.transaction(110, wire.insert(1, text("ben"), of=1))
    assert wire.transaction(120, wire.insert(8, text("ben"))).remap is True


def test_an_id_that_its_own_transaction_brings_after_it_was_missed_asks_for_a_remap():
    wire = followed()
    assert wire.transaction(100, wire.insert(1, text("ann"), of=1), wire.insert(7, text("ann"))).remap is True


def test_nothing_is_gathered_behind_a_remap():
    """Rows behind it are mapped anew: their keys are not on the target before it is done."""
    wire = followed(unmapped_before=[("person", "ann")])
    small(wire, 100, 7, text("ann"))
    first = small(wire, 110, 8, text("ben"))
    assert (first.remap, len(first.events)) == (True, 1)
    assert wire.assembler.take().remap is False


def test_a_change_beside_the_lookups_columns_changes_nothing():
    people = table("people", [column("id"), column("login", TEXT), column("bio", TEXT)], key=("id",))
    spec = MapSpec("person", frozenset(), OnUnmapped.NULL, ("public", "people"), "login", "id")
    wire = Wire([route(people, people)], lookups=[spec])
    wire.transaction(100, wire.insert(7, text("ann"), text("x")))
    for lsn, message in ((110, wire.update(7, text("ann"), text("y"))), (120, wire.update(7, text("ann"), UNCHANGED)),
                         (130, wire.update(7, UNCHANGED, text("z")))):  # fmt: skip
        batch = wire.transaction(lsn, message)
        assert (batch.map_changes, len(batch.events)) == ({}, 1)
    assert dict(wire.maps.entries("person")) == {"ann": "7"}


def test_a_lookup_needs_a_column_that_tells_a_deleted_row():
    people = table("people", [column("id"), column("login", TEXT), column("n")], key=("n",))
    spec = MapSpec("person", frozenset(), OnUnmapped.NULL, ("public", "people"), "login", "id")
    with pytest.raises(SchemaMismatch, match="neither login nor id is the replica identity"):
        Wire([route(people, people)], lookups=[spec])
    absent = MapSpec("person", frozenset(), OnUnmapped.NULL, ("public", "people"), "nope", "id")
    with pytest.raises(SchemaMismatch, match="no column nope"):
        Wire([route(people, people)], lookups=[absent])


def test_transactions_come_in_the_order_of_their_commits():
    """Another one would be applied out of order, or twice."""
    for lsn in (50, 99, 100):
        wire = Wire([PLAIN])
        wire.transaction(100, wire.insert(1, 1))
        with pytest.raises(ProtocolError, match="came behind"):
            wire.begin(lsn)


@pytest.mark.parametrize(("end", "time_us"), [(100, 5), (0, 5), (108, 2**63 - 1), (108, -(2**63))])
def test_a_commit_with_an_impossible_end_or_time_is_refused(end, time_us):
    wire = Wire([PLAIN])
    wire.begin(100)
    with pytest.raises(ProtocolError, match="impossible"):
        wire.send(pgoutput.Commit(0, Lsn(100), Lsn(end), time_us))


@pytest.mark.parametrize("old", [(), row(1), row(1, 2, 3)])
@pytest.mark.parametrize("of", [0, 1])
def test_an_old_row_of_the_wrong_width_is_refused(old, of):
    for key in (True, False):
        wire = Wire([PLAIN, keyless()])
        wire.begin(100)
        with pytest.raises(SchemaMismatch, match=f"a row of {len(old)} fields"):
            wire.send(wire.update(1, 2, old=old, key=key, of=of))
        with pytest.raises(SchemaMismatch, match=f"a row of {len(old)} fields"):
            wire.send(wire.delete(*old, key=key, of=of))


@pytest.mark.parametrize("token", [b"", b"\0", b"a\0b", b"\xff", b"x" * 65, b"a b", b"a\n"])
def test_a_fence_that_is_not_of_our_making_is_none(token):
    """Whoever may connect to the source may write messages with our prefix; a NUL would fail every checkpoint."""
    wire = Wire([PLAIN])
    message = pgoutput.LogicalMessage(True, Lsn(90), "replicator", b"fence:" + token)
    assert wire.transaction(100, message).fence is None


@pytest.mark.parametrize("seed", range(6))
def test_no_order_of_messages_breaks_anything_but_our_own_errors(seed):
    """Nothing that was accepted is left out either; `python -m tests.stream.fuzz_assembler` does millions."""
    found = fuzz_assembler.fuzz(4_000, seed)
    assert found["changes"] > 300
    assert found["ProtocolError"] > 5
    assert found["SchemaMismatch"] > 5
