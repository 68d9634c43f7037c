"""RELATION messages held against the routes: what passes, what stops the stream, and what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replicator.errors import SchemaMismatch
from replicator.model.lsn import Lsn
from replicator.pgoutput import RelationColumn
from replicator.stream.relations import fit_relation
from tests.routing.tables import TEXT, column, route, table
from tests.stream.made import Wire, relation_of, row, shown

T = table("t", [column("id"), column("v"), column("gone")], key=("id",))
MADE = route(T, table("t", [column("id"), column("v"), column("kept", default="0")], key=("id",)))


def columns(*names, **types):
    return tuple(RelationColumn(name == "id", name, types.get(name, 23), -1) for name in names)


def sent(*names, **types):
    return replace(relation_of(T), columns=columns(*names, **types))


def test_the_shape_that_was_planned_fits():
    assert fit_relation(MADE, relation_of(T)) is MADE
    assert fit_relation(MADE, sent("gone", "v", "id")) is MADE


def test_an_added_column_stops_the_stream_unless_the_policy_says_ignore():
    """`gone` is in today's catalog of the source, and was not there at snapshot time."""
    with pytest.raises(SchemaMismatch, match="column that the route does not know: gone") as caught:
        fit_relation(MADE, relation_of(T), known=("id", "v"))
    assert "on_new_column" in caught.value.hint
    assert fit_relation(MADE, relation_of(T), known=("id", "v"), ignore_new=True) is MADE


def test_a_homeless_column_was_known_only_if_it_was_there_at_snapshot_time():
    """`gone` is in today's catalog of the source: in the plan it is dropped, in the stream it may be news."""
    assert fit_relation(MADE, relation_of(T), known=("id", "v", "gone")) is MADE
    with pytest.raises(SchemaMismatch, match="does not know: gone"):
        fit_relation(MADE, relation_of(T), known=("id", "v"))
    assert fit_relation(MADE, relation_of(T), known=("id", "v"), ignore_new=True) is MADE


def test_a_dropped_or_renamed_column_stops_the_stream():
    for shape in (("id", "gone"), ("id", "w", "gone")):
        with pytest.raises(SchemaMismatch, match="no longer sends column v"):
            fit_relation(MADE, sent(*shape))
        with pytest.raises(SchemaMismatch, match="no longer sends column v"):
            fit_relation(MADE, sent(*shape), known=("id", "v", "gone"), ignore_new=True)
    assert fit_relation(MADE, sent("id", "v")) is MADE, "a column without a home may go"


def test_a_column_later_than_the_stream_keeps_its_default_meanwhile():
    """The routes are planned from today's catalog; the stream may be days behind."""
    fitted = fit_relation(MADE, sent("id", "gone"), known=("id", "gone"))
    assert (fitted.source_columns, fitted.defaulted, fitted.key) == (("id",), ("kept", "v"), (0,))
    with pytest.raises(SchemaMismatch, match="no longer sends column v"):
        fit_relation(MADE, sent("id", "gone"), known=("id", "gone"), seen=("id", "v"))


def test_it_stops_being_missing_once_the_stream_gets_there():
    wire = Wire([MADE], known_columns={("public", "t"): ("id", "gone")}, announce=False)
    wire.begin(100)
    wire.send(sent("id", "gone"))
    wire.send(wire.insert(1, 9))
    wire.send(relation_of(T))
    wire.send(wire.insert(2, 5, 9))
    batch = wire.commit()
    assert [r for _, _, _, r in shown(batch)] == [row(1), row(2, 5)]
    wire.begin(200)
    with pytest.raises(SchemaMismatch, match="no longer sends column v"):
        wire.send(sent("id", "gone"))


def test_a_changed_type_stops_the_stream():
    with pytest.raises(SchemaMismatch, match="type of source column v has changed"):
        fit_relation(MADE, sent("id", "v", "gone", v=TEXT.oid))
    assert fit_relation(MADE, sent("id", "v", "gone", gone=TEXT.oid)) is MADE


@pytest.mark.parametrize("identity", ["n", "f", "i"])
def test_a_changed_replica_identity_stops_the_stream(identity):
    with pytest.raises(SchemaMismatch, match="replica identity of the source table has changed"):
        fit_relation(MADE, replace(relation_of(T), replica_identity=identity))


def test_changed_key_columns_stop_the_stream():
    other = tuple(replace(c, is_key=c.name == "v") for c in relation_of(T).columns)
    with pytest.raises(SchemaMismatch, match="key columns of the source table have changed"):
        fit_relation(MADE, replace(relation_of(T), columns=other))


def test_every_column_of_identity_full_is_flagged_and_fits():
    full = table("t", [column("id"), column("v")], key=("id",), identity="f")
    assert fit_relation(route(full, full), relation_of(full)).key == (0,)


def test_generated_columns_are_not_sent_and_not_missed():
    source = table("t", [column("id"), column("twice", generated=True)], key=("id",))
    made = route(source, source)
    assert fit_relation(made, relation_of(source), known=("id", "twice")) is made


def test_a_shape_keeps_its_snapshot():
    wire = Wire([MADE], snapshot_lsns={("public", "t"): Lsn(7)})
    wire.send(relation_of(T))
    assert wire.relations[T.oid].skip_before == 7


def test_a_column_newer_than_the_catalog_is_news():
    with pytest.raises(SchemaMismatch, match="does not know: fresh"):
        fit_relation(MADE, sent("id", "v", "gone", "fresh"), known=("id", "v", "gone"))


def test_rows_from_before_a_column_was_dropped_are_told_from_news():
    """It was there at snapshot time, and today's catalog has it no more; ignoring it would lose its values."""
    with pytest.raises(SchemaMismatch, match="from before column old was dropped or renamed"):
        fit_relation(MADE, sent("id", "v", "gone", "old"), known=("id", "v", "gone", "old"), ignore_new=True)


def test_a_renamed_column_is_never_ignored():
    """`kept` was fed at snapshot time; now something else is sent and `kept` would stay at its default."""
    with pytest.raises(SchemaMismatch, match="no longer kept"):
        fit_relation(MADE, sent("id", "v", "gone", "was_kept"), known=("id", "v", "gone", "kept"), ignore_new=True)


def test_a_shape_from_before_the_tables_own_snapshot_is_refused_only_with_rows_from_behind_it():
    """Copying a table again mends a mismatch: what comes from before the copy is skipped, whatever its shape."""
    wire = Wire([MADE], snapshot_lsns={("public", "t"): Lsn(500)}, announce=False)
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
        wire.assembler._open = None
    wire.begin(700)
    with pytest.raises(SchemaMismatch, match="no longer sends column v"):
        wire.send(sent("id", "gone"))
