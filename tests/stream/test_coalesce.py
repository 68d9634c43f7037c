"""A batch's net effect per row: each transition, and the whole against a model that applies event by event."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.model.row import UNCHANGED, Row
from replicator.stream.batch import Batch, Coalesced, Event, Net, Truncation, Unmap, coalesce
from tests.stream.history import (
    INSERT,
    T,
    World,
    X,
    apply_event,
    dele,
    extra_of,
    histories,
    ins,
    merged,
    plain,
    upd,
)
from tests.stream.made import row, simple


def net(*events, **options) -> Net:
    """The net effect of events that make one coalesced segment of one table."""
    [segment] = coalesce(events, **options)
    assert isinstance(segment, dict)
    [only] = segment.values()
    return only


def segments_of(events, **options) -> list[Any]:
    """Segments without those that change nothing."""
    return [s for s in coalesce(events, **options) if not isinstance(s, dict) or any(map(len, s.values()))]


def updates(result: Net) -> list[Row]:
    return [one for rows in result.updates.values() for one in rows]


@pytest.mark.parametrize(
    ("events", "deletes", "updated", "inserts"),
    [
        ([ins(1, 1, 1)], [], [], [row(1, 1, 1)]),
        ([ins(1, 1, 1), upd(1, 2, X)], [], [], [row(1, 2, 1)]),
        ([ins(1, 1, 1), upd(1, 2, X), dele(1)], [], [], []),
        ([ins(1, 1, 1), dele(1), ins(1, 2, 2)], [], [], [row(1, 2, 2)]),
        ([ins(1, 1, 1), dele(1), ins(1, 2, 2), dele(1)], [], [], []),
        ([upd(1, 2, 3)], [], [row(1, 2, 3)], []),
        ([upd(1, 2, X)], [], [row(1, 2, X)], []),
        ([upd(1, 2, X), upd(1, X, 3)], [], [row(1, 2, 3)], []),
        ([upd(1, 2, 2), upd(1, X, X)], [], [row(1, 2, 2)], []),
        ([upd(1, 2, X), dele(1)], [row(1)], [], []),
        ([dele(1)], [row(1)], [], []),
        ([dele(1), ins(1, 5, 5)], [], [row(1, 5, 5)], []),
        ([dele(1), ins(1, 5, 5), upd(1, X, 6)], [], [row(1, 5, 6)], []),
        ([dele(1), ins(1, 5, 5), dele(1)], [row(1)], [], []),
        ([upd(1, 2, 2), dele(1), ins(1, 3, 3), dele(1)], [row(1)], [], []),
        # key changes
        ([upd(2, 7, 7, old=[1])], [row(1)], [], [row(2, 7, 7)]),
        ([ins(1, 1, 1), upd(2, X, 7, old=[1])], [], [], [row(2, 1, 7)]),
        ([upd(1, 2, 3), upd(2, X, X, old=[1])], [row(1)], [], [row(2, 2, 3)]),
        ([upd(2, 7, 7, old=[1]), upd(3, 7, 8, old=[2])], [row(1)], [], [row(3, 7, 8)]),
        ([upd(2, 7, 7, old=[1]), ins(1, 9, 9)], [], [row(1, 9, 9)], [row(2, 7, 7)]),
        ([dele(2), upd(2, 7, 7, old=[1])], [row(1)], [row(2, 7, 7)], []),
        ([upd(3, 1, 1, old=[1]), upd(1, 2, 2, old=[2]), upd(2, 1, 1, old=[3])], [], [row(1, 2, 2), row(2, 1, 1)], []),
    ],
)
def test_transitions(events, deletes, updated, inserts):
    result = net(*events)
    assert (result.deletes, updates(result), result.inserts) == (deletes, updated, inserts)
    assert len(result) == len(deletes) + len(updated) + len(inserts)


def test_updates_are_grouped_by_the_columns_that_they_set():
    result = net(upd(1, 1, 1), upd(2, 2, X), upd(3, 3, X), upd(4, X, X))
    assert result.updates == {(0, 1, 2): [row(1, 1, 1)], (0, 1): [row(2, 2, X), row(3, 3, X)], (0,): [row(4, X, X)]}


ORDERED: list[tuple[str, list[Event]]] = [
    ("a key change with untouched values", [upd(2, X, 7, old=[1])]),
    ("after an update that left them untouched too", [upd(1, 5, X), upd(2, X, X, old=[1])]),
    ("a row inserted twice", [ins(1, 1, 1), ins(1, 1, 1)]),
    ("an insert over an updated row", [upd(1, 1, 1), ins(1, 1, 1)]),
    ("an update of a deleted row", [dele(1), upd(1, 1, 1)]),
    ("an update of a row that came and went", [ins(1, 1, 1), dele(1), upd(1, 1, 1)]),
    ("a row deleted twice", [dele(1), dele(1)]),
    ("a row that came and went deleted", [ins(1, 1, 1), dele(1), dele(1)]),
    ("a key that is taken", [ins(2, 2, 2), upd(2, 1, 1, old=[1])]),
    ("the key of a deleted row", [dele(1), upd(2, 1, 1, old=[1])]),
    ("the key of a row that came and went", [ins(1, 1, 1), dele(1), upd(2, 1, 1, old=[1])]),
]


@pytest.mark.parametrize(("events"), [e for _, e in ORDERED], ids=[name for name, _ in ORDERED])
def test_what_cannot_be_coalesced_comes_in_order(events):
    *before, last = events
    *sets, ordered = segments_of(events)
    assert ordered == [last]
    assert sets == segments_of(before)


def test_without_key_changes_they_come_in_order():
    events = [upd(2, 1, 1, old=[1]), upd(2, 5, 5)]
    first, second = segments_of(events, key_changes=False)
    assert first == [events[0]]
    assert isinstance(second, dict)
    assert updates(second[T]) == [row(2, 5, 5)]


def test_columns_that_only_the_target_fills_keep_delete_and_insert_apart():
    """Neither a key change nor a row's return may pass as the other: the extra column would keep or lose its value."""
    table = simple(extra=True)
    for last in (ins(1, 5, 5, of=table), upd(2, 1, 1, old=[1], of=table)):
        events = [dele(1, of=table), last] if last[0] is INSERT else [last]
        assert coalesce(events)[-1] == [last]
    assert net(ins(1, 1, 1, of=table), dele(1, of=table), ins(1, 2, 2, of=table)).inserts == [row(1, 2, 2)]


def test_tables_without_a_key():
    log = simple("log", key=(), identity="f")
    change = upd(1, 1, 2, old=[1, 1, 1], of=log)
    segments = coalesce(
        [ins(1, 1, 1, of=log), ins(1, 1, 1, of=log), change, ins(2, 2, 2, of=log), dele(2, 2, 2, of=log)]
    )
    assert [type(one) for one in segments] == [dict, list, dict, list]
    assert isinstance(segments[0], dict)
    assert segments[0][log].inserts == [row(1, 1, 1)] * 2
    assert segments[1] == [change]


def test_segments_keep_the_order_of_the_events():
    other = simple("u")
    truncation = Truncation((T,), False)
    unmap = Unmap("m", "a", "b")
    events: list[Any] = [ins(1, 1, 1), ins(1, 1, 1, of=other), truncation, unmap, ins(1, 2, 2), dele(1, of=other)]
    first, second, third = coalesce(events)
    assert isinstance(first, dict)
    assert set(first) == {T, other}
    assert second == [truncation, unmap]
    assert isinstance(third, dict)
    assert (third[T].inserts, third[other].deletes) == ([row(1, 2, 2)], [row(1)])


def test_nothing_makes_no_segment():
    assert coalesce([]) == []
    assert coalesce([ins(1, 1, 1), dele(1)]) == [{T: Net()}]


def test_absorbing_a_batch():
    first = Batch(events=[ins(1, 1, 1)], size=10, transactions=1, end_lsn=10, commit_time=1, fence="a")  # type: ignore[arg-type]
    first.map_changes = {("m", "x"): "1", ("m", "y"): "1"}
    second = Batch(events=[dele(1)], size=5, transactions=2, end_lsn=20, commit_time=2, remap=True)  # type: ignore[arg-type]
    second.map_changes = {("m", "x"): None}
    first.absorb(second)
    first.absorb(Batch(end_lsn=15))  # type: ignore[arg-type]
    assert (len(first.events), first.size, first.transactions, first.end_lsn) == (2, 15, 3, 20)
    assert (first.commit_time, first.fence, first.remap) == (2, "a", True)
    assert first.map_changes == {("m", "x"): None, ("m", "y"): "1"}


# ── the whole, against the model ───────────────────────────────────────────────────────────────────────


def apply_sets(world: World, segment: Coalesced) -> None:
    for table, result in segment.items():
        rows = world[str(table)]
        for key in result.deletes:
            del rows[key]
    for table, result in segment.items():
        rows = world[str(table)]
        for assigned, news in result.updates.items():
            for new in news:
                assert all((value is UNCHANGED) == (at not in assigned) for at, value in enumerate(new))
                old, extra = rows[table.key_of(new)]
                rows[table.key_of(new)] = (merged(new, old), extra)
        for new in result.inserts:
            assert UNCHANGED not in new
            if table.has_key:
                assert table.key_of(new) not in rows
                rows[table.key_of(new)] = (new, extra_of(table))
            else:
                rows[new] += 1


@settings(max_examples=300, deadline=None)
@given(histories(), st.booleans())
def test_segments_do_what_the_events_do_in_order(history, key_changes):
    world, events = history
    coalesced = {name: rows.copy() for name, rows in world.items()}
    for event in events:
        apply_event(world, event)
    for segment in coalesce(events, key_changes=key_changes):
        if isinstance(segment, dict):
            apply_sets(coalesced, segment)
        else:
            for event in segment:
                apply_event(coalesced, event)
    assert plain(coalesced) == plain(world)
