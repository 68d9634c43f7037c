"""RELATION messages held against the routes: what passes, what stops the stream, and what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replicator import pgoutput
from replicator.errors import SchemaMismatch
from replicator.model.lsn import Lsn
from replicator.pgoutput import RelationColumn
from replicator.routing.record import record_of, renewed
from replicator.stream.fitting import fit_relation
from tests.routing.tables import INT, TEXT, column, number, route, table, text
from tests.stream.made import Wire, relation_of, row, shown

T = table("t", [column("id"), column("v"), column("gone")], key=("id",))
MADE = route(T, table("t", [column("id"), column("v"), column("kept", default="0")], key=("id",)))
NAME = ("public", "t")


def columns(*names, **types):
    return tuple(RelationColumn(name == "id", name, types.get(name, 23), -1) for name in names)


def sent(*names, **types):
    return replace(relation_of(T), columns=columns(*names, **types))


def made(*source, dropped=(), target=("id", "v")):
    """A route of today's catalogs. Source columns: (attnum, name)."""
    columns = [column(name, attnum=attnum) for attnum, name in source]
    today = replace(table("t", columns, key=("id",)), dropped=tuple(dropped))
    return route(today, table("t", [column(name) for name in target], key=("id",)))


COPIED = record_of(made((1, "id"), (2, "v"), (3, "w"), target=("id", "v", "w")))


def test_the_shape_that_was_planned_fits():
    shape = fit_relation(MADE, relation_of(T))
    assert shape.route is MADE
    assert (shape.attnums, shape.layout) == ((1, 2, 3), ("id", "v", "gone"))
    with pytest.raises(SchemaMismatch, match="can be read in several ways"):
        fit_relation(MADE, sent("gone", "v", "id"))


def test_an_added_column_stops_the_stream_unless_the_policy_says_ignore():
    """`extra` is in today's catalog of the source, and was not there at snapshot time."""
    today = made((1, "id"), (2, "v"), (3, "w"), (4, "extra"), target=("id", "v", "w"))
    shape = sent("id", "v", "w", "extra")
    with pytest.raises(SchemaMismatch, match="column that the route does not know: extra") as caught:
        fit_relation(today, shape, record=COPIED)
    assert "ALTER TABLE t ADD COLUMN extra integer" in caught.value.hint
    assert "on_new_column" in caught.value.hint
    assert fit_relation(today, shape, record=COPIED, ignore_new=True).route is today


def test_a_homeless_column_is_news_only_if_it_was_not_there_at_snapshot_time():
    assert fit_relation(MADE, relation_of(T), record=record_of(MADE)).route is MADE


def test_a_column_newer_than_the_catalog_is_news():
    for shape in (sent("id", "v", "w", "fresh"), sent("id", "v", "w", "fresh", "fresher")):
        today = made((1, "id"), (2, "v"), (3, "w"), target=("id", "v", "w"))
        with pytest.raises(SchemaMismatch, match="does not know: fresh"):
            fit_relation(today, shape, record=COPIED)


def test_a_dropped_or_renamed_column_stops_the_stream():
    for shape in (("id", "gone"), ("id", "w", "gone")):
        with pytest.raises(SchemaMismatch, match=r"no longer (sends column )?v"):
            fit_relation(MADE, sent(*shape))
        with pytest.raises(SchemaMismatch, match=r"no longer (sends column )?v"):
            fit_relation(MADE, sent(*shape), record=record_of(MADE), ignore_new=True)


def test_a_column_later_than_the_stream_keeps_its_default_meanwhile():
    """The routes are planned from today's catalog; the stream may be days behind."""
    today = made((1, "id"), (2, "v"), (3, "w"), (4, "extra"), target=("id", "v", "w", "extra"))
    fitted = fit_relation(today, sent("id", "v", "w"), record=COPIED).route
    assert (fitted.source_columns, fitted.defaulted, fitted.key) == (("id", "v", "w"), ("extra",), (0,))
    with pytest.raises(SchemaMismatch, match="no longer sends column extra"):
        fit_relation(today, sent("id", "v", "w"), record=COPIED, seen=(1, 2, 3, 4))


def test_it_stops_being_missing_once_the_stream_gets_there():
    today = made((1, "id"), (2, "v"), target=("id", "v"))
    wire = Wire([today], records={NAME: record_of(made((1, "id"), target=("id",)))}, announce=False)
    wire.begin(100)
    wire.send(sent("id"))
    wire.send(wire.insert(1))
    wire.send(sent("id", "v"))
    wire.send(wire.insert(2, 5))
    batch = wire.commit()
    assert [r for _, _, _, r in shown(batch)] == [row(1), row(2, 5)]
    wire.begin(200)
    with pytest.raises(SchemaMismatch, match="no longer sends column v"):
        wire.send(sent("id"))


@pytest.mark.parametrize(
    ("shape", "today", "attnums"),
    [
        pytest.param("id v w", [(1, "id"), (2, "v"), (3, "x")], (1, 2, 3), id="renamed since"),
        pytest.param("id v w", [(1, "id"), (2, "w"), (3, "v")], (1, 2, 3), id="two have changed names since"),
        pytest.param("id v w", [(1, "id"), (2, "v"), (3, "x"), (4, "w")], (1, 2, 3), id="another has its name now"),
        pytest.param("id v x w", [(1, "id"), (2, "v"), (3, "x"), (4, "w")], (1, 2, 3, 4), id="it has come so far"),
        pytest.param("id v w", [(1, "id"), (2, "v")], (1, 2, 0), id="dropped since"),
        pytest.param("id v w", [(1, "id"), (2, "v"), (4, "w")], None, id="the dropped one, or its successor"),
        pytest.param("id v w e", [(1, "id"), (2, "v"), (3, "w"), (4, "f")], (1, 2, 3, 4), id="added, renamed since"),
        pytest.param("id v w e", [(1, "id"), (2, "v"), (3, "w")], (1, 2, 3, 0), id="added and dropped since"),
        pytest.param("id v w e", [(1, "id"), (2, "v"), (3, "w"), (5, "f")], None, id="f may be e, or another one"),
        pytest.param("id v w", [(1, "id"), (2, "v"), (4, "w"), (3, "x")], (1, 2, 3), id="in whatever order"),
    ],
)
def test_columns_are_told_by_their_place_whatever_they_are_called_now(shape, today, attnums):
    live = {attnum for attnum, _ in today}
    dropped = [attnum for attnum in range(1, max(live | {4}) + 1) if attnum not in live]
    planned = made(*sorted(today), dropped=dropped, target=("id", "v", "w", "x", "f"))
    record = renewed(COPIED, planned, with_homeless=False) if shape != "id v w e" else COPIED
    if attnums is None:
        with pytest.raises(SchemaMismatch, match=r"does not know: e|several ways"):
            fit_relation(planned, sent(*shape.split()), record=record)
    else:
        settled = [("shape", T.oid, tuple(shape.split()))]  # the plan was made anew for it
        assert fit_relation(planned, sent(*shape.split()), record=record, settled=settled).attnums == attnums


def test_values_go_to_the_column_that_has_another_name_by_now():
    planned = made((1, "id"), (2, "x"), target=("id", "x"))
    record = renewed(record_of(made((1, "id"), (2, "v"))), planned, with_homeless=False)
    wire = Wire([planned], records={NAME: record}, announce=False)
    wire.begin(100)
    wire.send(sent("id", "v"))
    wire.send(wire.insert(1, 7))
    [(_, _, _, new)] = shown(wire.commit())
    assert new == row(1, 7)


def test_a_changed_type_stops_the_stream_where_its_values_do_not_fit():
    with pytest.raises(SchemaMismatch, match="type of source column v has changed"):
        fit_relation(MADE, sent("id", "v", "gone", v=TEXT.oid))
    assert fit_relation(MADE, sent("id", "v", "gone", gone=TEXT.oid)).route is MADE


def test_values_of_a_type_of_before_become_those_of_now():
    """int → bigint on both sides, while old rows are still in the slot."""
    wide = replace(INT, oid=20, name="bigint")
    planned = route(*[table("t", [column("id"), column("v", wide)], key=("id",))] * 2)
    wire = Wire([planned], announce=False)
    wire.begin(100)
    wire.send(sent("id", "v"))
    wire.send(wire.insert(1, -7))
    wire.send(wire.insert(1, None))
    assert [r for _, _, _, r in shown(wire.commit())] == [
        (number(1), b"\0\0\0\x08" + (-7).to_bytes(8, "big", signed=True)),
        row(1, None),
    ]


def test_a_text_may_have_been_a_varchar():
    planned = route(*[table("t", [column("id"), column("v", TEXT)], key=("id",))] * 2)
    wire = Wire([planned], announce=False)
    wire.begin(100)
    wire.send(sent("id", "v", v=1043))
    wire.send(wire.insert(1, text("as it is")))
    assert [r for _, _, _, r in shown(wire.commit())] == [row(1, text("as it is"))]


@pytest.mark.parametrize("identity", ["n", "f", "i"])
def test_the_replica_identity_is_for_each_shape_to_say(identity):
    """It is altered in the middle of a transaction: what comes before it is told apart by the old one."""
    fitted = fit_relation(MADE, replace(relation_of(T), replica_identity=identity)).route
    assert fitted.source.replica_identity == identity
    assert fitted.source.key == (() if identity == "n" else ("id",))


def test_so_are_the_key_columns():
    other = tuple(replace(c, is_key=c.name == "v") for c in relation_of(T).columns)
    assert fit_relation(MADE, replace(relation_of(T), columns=other)).route.source.key == ("v",)
    none = tuple(replace(c, is_key=False) for c in relation_of(T).columns)
    assert fit_relation(MADE, replace(relation_of(T), columns=none)).route.key == ()
    homeless = tuple(replace(c, is_key=c.name == "gone") for c in relation_of(T).columns)
    with pytest.raises(SchemaMismatch, match="key columns of the source table have changed"):
        fit_relation(MADE, replace(relation_of(T), columns=homeless))


def test_every_column_of_identity_full_is_flagged_and_fits():
    full = table("t", [column("id"), column("v")], key=("id",), identity="f")
    assert fit_relation(route(full, full), relation_of(full)).route.key == (0,)


def test_generated_columns_are_not_sent_and_not_missed():
    source = table("t", [column("id"), column("twice", generated=True)], key=("id",))
    planned = route(source, source)
    assert fit_relation(planned, relation_of(source), record=record_of(planned)).route is planned


def test_a_shape_keeps_its_snapshot():
    wire = Wire([MADE], snapshot_lsns={NAME: Lsn(7)})
    wire.send(relation_of(T))
    assert wire.relations[T.oid].skip_before == 7


def test_a_relation_that_is_only_repeated_stays_what_it_was():
    """Every VACUUM makes the server send it again: the statements made for it are still good."""
    wire = Wire([MADE])
    before = wire.relations[T.oid]
    assert not wire.relations.altered
    wire.send(relation_of(T))
    assert wire.relations[T.oid] is before
    assert wire.relations.altered


def test_a_renamed_column_is_never_ignored():
    with pytest.raises(SchemaMismatch, match="does not know, and no longer v"):
        fit_relation(MADE, sent("id", "was_v", "gone"), record=record_of(MADE), ignore_new=True)


def test_a_table_under_another_name_is_taken_once_the_plan_was_made_anew():
    """By its OID; and a plan made anew says whether it was called so, or is called so from here on."""
    wire = Wire([MADE], announce=False)
    wire.begin(100)
    with pytest.raises(SchemaMismatch, match="the stream calls the source's table u, the plan t") as caught:
        wire.send(relation_of(T, name="u"))
    wire = Wire([MADE], announce=False, settled=[caught.value.doubt])
    wire.begin(100)
    wire.send(relation_of(T, name="u"))
    wire.send(wire.insert(1, 2, 3))
    assert [r for _, _, _, r in shown(wire.commit())] == [row(1, 2)]


def test_another_table_of_the_same_name_is_refused():
    """Dropped and created again, or swapped: its rows are not this table's."""
    wire = Wire([MADE], announce=False, snapshot_lsns={NAME: Lsn(500)})
    wire.begin(100)
    wire.send(relation_of(T, oid=1))
    wire.send(pgoutput.Insert(1, row(1, 2, 3)))
    wire.send(pgoutput.Truncate((1,), cascade=False, restart_identity=False))
    assert wire.commit().events == [], "the table's own snapshot is newer than its predecessor"
    wire.begin(600)
    wire.send(relation_of(T, oid=1))
    with pytest.raises(SchemaMismatch, match="rows of another table t than the one"):
        wire.send(pgoutput.Insert(1, row(1, 2, 3)))


def test_rows_of_a_table_that_was_taken_out_are_left_out():
    """Once a plan made anew has seen that it is not published any more."""
    wire = Wire([MADE], announce=False)
    wire.begin(100)
    wire.send(relation_of(T, oid=1, name="u"))
    with pytest.raises(SchemaMismatch, match="rows of u, which no route takes") as caught:
        wire.send(pgoutput.Insert(1, row(1, 2, 3)))
    wire = Wire([MADE], settled=[caught.value.doubt])
    wire.begin(100)
    wire.send(relation_of(T, oid=1, name="u"))
    wire.send(pgoutput.Insert(1, row(1, 2, 3)))
    wire.send(wire.insert(4, 5, 6))
    assert [r for _, _, _, r in shown(wire.commit())] == [row(4, 5)]


def test_a_shape_from_before_the_tables_own_snapshot_is_refused_only_with_rows_from_behind_it():
    """Copying a table again mends a mismatch: what comes from before the copy is skipped, whatever its shape."""
    wire = Wire([MADE], snapshot_lsns={NAME: Lsn(500)}, announce=False)
    wire.begin(100)
    wire.send(sent("id", "gone"))
    wire.send(wire.insert(1, 2))
    wire.send(wire.delete(1, None))
    wire.send(wire.truncate(0))
    assert wire.commit().events == []
    changes = wire.insert(1, 2), wire.update(1, 2), wire.delete(1, None), wire.truncate(0)
    for lsn, message in enumerate(changes, start=600):
        wire.begin(lsn)
        with pytest.raises(SchemaMismatch, match="no longer sends column v"):
            wire.send(message)
        wire.assembler._events = None
    wire.begin(700)
    with pytest.raises(SchemaMismatch, match="no longer sends column v"):
        wire.send(sent("id", "gone"))
