"""Random changes, each valid after those before it, and a model of the tables that they change."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import strategies as st

from replicator.model.change import Op
from replicator.model.row import UNCHANGED, Row
from replicator.stream.batch import Event, Truncation, Unmap
from replicator.stream.relations import RoutedTable
from tests.stream.made import row, simple

INSERT, UPDATE, DELETE = Op.INSERT, Op.UPDATE, Op.DELETE
X = UNCHANGED
T = simple()

# Tables (id, a, b) of integers. `seat.a` is unique; `defaulted` has a column of its own on the target; `wide` has
# the key (b, id); a bag has none.
KEYED, SEAT, WIDE = simple("keyed"), simple("seat"), simple("wide", key=("b", "id"))
DEFAULTED, BAG = simple("defaulted", extra=True), simple("bag", key=(), identity="f")
TABLES = {str(table): table for table in (KEYED, SEAT, WIDE, DEFAULTED, BAG)}
World = dict[str, Any]  # {key: (row, extra)} by table; of the bag: a Counter of rows


def ins(*values, of=T):
    return (INSERT, of, None, row(*values))


def upd(*values, old=None, of=T):
    return (UPDATE, of, None if old is None else row(*old), row(*values))


def dele(*key, of=T):
    return (DELETE, of, row(*key), None)


def empty() -> World:
    return {name: {} if table.has_key else Counter() for name, table in TABLES.items()}


def merged(new: Row, old: Row) -> Row:
    return tuple(b if a is UNCHANGED else a for a, b in zip(new, old, strict=True))


def extra_of(table: RoutedTable) -> str:
    """What a new row has in the column that only the target fills."""
    return "default" if table is DEFAULTED else ""


def plain(world: World) -> World:
    """Without the rows that a bag holds no time."""
    return {name: +rows if isinstance(rows, Counter) else rows for name, rows in world.items()}


def apply_event(world: World, event: Event) -> None:
    """As a server would: every change must find its row, every key and unique value must be free."""
    if isinstance(event, Truncation):
        for table in event.tables:
            world[str(table)].clear()
        return
    assert not isinstance(event, Unmap)
    op, table, old_key, new = event
    rows = world[str(table)]
    if not table.has_key:
        if op is not INSERT:
            assert rows[old_key] > 0
            rows[old_key] -= 1
        if op is not DELETE:
            rows[merged(new, old_key) if op is UPDATE else new] += 1
    elif op is INSERT:
        assert table.key_of(new) not in rows
        rows[table.key_of(new)] = (new, extra_of(table))
    elif op is DELETE:
        del rows[old_key]
    else:
        old, extra = rows.pop(old_key if old_key is not None else table.key_of(new))
        full = merged(new, old)
        assert table.key_of(full) not in rows
        rows[table.key_of(full)] = (full, extra)
    if table is SEAT:
        taken = [one[1] for one, _ in rows.values() if one[1] != row(None)[0]]
        assert len(taken) == len(set(taken))


@st.composite
def histories(draw: st.DrawFn, longest: int = 25) -> tuple[World, list[Event]]:
    """A world, and events that are valid in it, one after the other."""
    world, reference = empty(), empty()
    for id_ in draw(st.sets(st.integers(0, 4))):
        for name, table in TABLES.items():
            if table.has_key:
                seeded = row(id_, 100 + id_, 0 if table is WIDE else 100)
                for one in (world, reference):
                    one[name][table.key_of(seeded)] = (seeded, "ours" if table is DEFAULTED else "")
    events: list[Event] = []
    for _ in range(draw(st.integers(0, longest))):
        table = draw(st.sampled_from([KEYED, KEYED, SEAT, SEAT, WIDE, DEFAULTED, BAG]))
        event = _event(draw, table, reference[str(table)])
        if event is not None:
            apply_event(reference, event)
            events.append(event)
    return world, events


def _event(draw: st.DrawFn, table: RoutedTable, rows: Any) -> Event | None:
    kind = draw(st.sampled_from("iiiuuuukkdddt"))
    if kind == "t":
        tables = draw(st.permutations(list(TABLES.values())))[: draw(st.integers(1, 2))]
        return Truncation(tuple(tables), False) if draw(st.booleans()) else None
    if not table.has_key:
        return _bag_event(draw, kind, rows)
    here = sorted(rows)
    free = sorted({_key(table, id_) for id_ in range(6)} - rows.keys())
    if kind == "i":
        return (INSERT, table, None, _row(draw, table, draw(st.sampled_from(free)), rows, None)) if free else None
    if not here:
        return None
    key = draw(st.sampled_from(here))
    if kind == "d":
        return (DELETE, table, key, None)
    if kind == "u":
        return (UPDATE, table, None, _row(draw, table, key, rows, key))
    return (UPDATE, table, key, _row(draw, table, draw(st.sampled_from(free)), rows, key)) if free else None


def _bag_event(draw: st.DrawFn, kind: str, rows: Counter[Row]) -> Event:
    present = sorted(one for one, count in rows.items() if count)
    if kind == "i" or not present:
        return ins(draw(st.integers(0, 1)), draw(st.sampled_from([1, None])), 1, of=BAG)
    old = draw(st.sampled_from(present))
    if kind == "d":
        return (DELETE, BAG, old, None)
    return (UPDATE, BAG, old, (old[0], X if draw(st.booleans()) else row(draw(st.integers(0, 1)))[0], old[2]))


def _key(table: RoutedTable, number: int) -> Row:
    return row(number % 2, number) if table is WIDE else row(number)


def _row(draw: st.DrawFn, table: RoutedTable, key: Row, rows: Any, old_key: Row | None) -> Row:
    """A row of this key: new, or the new state of the row of ``old_key``, some of it untouched."""
    values = [*range(10), None]
    if table is SEAT:
        taken = {one[1] for other, (one, _) in rows.items() if other != old_key}
        values = [value for value in values if value is None or row(value)[0] not in taken]
    fields = [
        X if old_key is not None and draw(st.booleans()) else row(draw(st.sampled_from(choices)))[0]
        for choices in (values, range(10))
    ]
    return (key[1], fields[0], key[0]) if table is WIDE else (*key, *fields)
