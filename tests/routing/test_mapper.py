"""Rows through compiled routes: columns found, IDs mapped, absent values left alone."""

from __future__ import annotations

import uuid

import pytest

from replicator.errors import ConfigError, UnmappedId
from replicator.model.row import NULL, UNCHANGED, Field, field, join
from replicator.routing.idmap import IdMap, IdMaps, MapSpec, OnUnmapped, Unmapped, to_text, to_wire
from replicator.routing.mapper import Mapper
from replicator.routing.route import RouteSpec, plan_routes
from tests.routing.tables import INT, TEXT, UUID, column, number, route, table, text

A, B, C = (str(uuid.UUID(int=i)) for i in (1, 2, 3))


def users(policy: OnUnmapped = OnUnmapped.KEEP, *columns: str) -> MapSpec:
    return MapSpec("users", frozenset(("public", "t", name) for name in columns or ("who",)), policy)


def test_columns_are_found_by_name_in_any_order():
    source = table("t", [column("a"), column("gone"), column("b", TEXT)], key=("a",))
    target = table("t", [column("b", TEXT), column("kept", default="1"), column("a")])
    made = route(source, target)
    assert (made.dropped, made.defaulted, made.key) == (("gone",), ("kept",), (1,))
    for layout in (["a", "gone", "b"], ["b", "a"], ["gone", "new", "b", "a"]):
        values = {"a": number(1), "b": text("x"), "gone": number(2), "new": number(3)}
        mapper = Mapper(made, layout, IdMaps())
        row = mapper.row(tuple(values[name] for name in layout))
        assert row == (text("x"), number(1))
        assert mapper.key_of(row) == (number(1),)
        assert mapper.old_key(tuple(values[n] if n == "a" else NULL for n in layout)) == (number(1),)


def test_a_route_of_the_same_shape_passes_the_very_row():
    made = route(table("t", [column("a"), column("b")], key=("a",)), table("t", [column("a"), column("b")]))
    row = (number(1), UNCHANGED)
    assert Mapper(made, ["a", "b"], IdMaps()).row(row) is row
    assert made.is_verbatim


def test_a_key_of_several_columns_keeps_its_own_order():
    source = table("t", [column("a"), column("b"), column("c")], key=("c", "a"))
    made = route(source, table("t", [column("a"), column("b"), column("c")]))
    mapper = Mapper(made, ["a", "b", "c"], IdMaps())
    assert mapper.key_of((number(1), number(2), number(3))) == (number(3), number(1))
    assert mapper.old_key((number(1), NULL, number(3))) == (number(3), number(1))
    assert (
        Mapper(route(table("t", [column("a")], identity="f"), table("t", [column("a")])), ["a"], IdMaps()).key_of(
            (number(1),)
        )
        == ()
    )


@pytest.mark.parametrize("layout", [["id", "who"], ["who", "id"]])
def test_ids_are_mapped_in_rows_and_keys(layout):
    made = route(
        table("t", [column("id"), column("who", UUID)], key=("who", "id")),
        table("t", [column("id"), column("who", UUID)]),
        maps=[users()],
    )
    mapper = Mapper(made, layout, IdMaps({"users": {A: B}}))
    values = {"id": number(7), "who": to_wire("uuid", A)}
    row = mapper.row(tuple(values[name] for name in layout))
    assert row == (number(7), to_wire("uuid", B))
    assert mapper.old_key(tuple(values[name] for name in layout)) == (to_wire("uuid", B), number(7))
    assert mapper.key_of(row) == (to_wire("uuid", B), number(7))
    assert not mapper.take_unmapped()


@pytest.mark.parametrize("names", [["who"], ["id", "who", "note"], ["id", "note", "who", "by", "id2"], ["by", "who"]])
@pytest.mark.parametrize("noted", [NULL, field(b""), field(b"x" * 300)], ids=["null", "empty", "long"])
def test_a_copy_row_is_mapped_as_its_fields_are(names, noted):
    """Mapped columns first, last and side by side, known and not, behind fields of any length."""
    columns = [column(name, UUID if name in ("who", "by") else TEXT) for name in names]
    made = route(table("t", columns), table("t", columns), maps=[users(OnUnmapped.KEEP, "who", *{"by"} & {*names})])

    def mapped(who: Field) -> tuple[bytes, bytes, set[Unmapped]]:
        mapper = Mapper(made, names, IdMaps({"users": {A: B}}))
        values = {"who": who, "by": to_wire("uuid", A), "id": text("7"), "id2": text("8"), "note": noted}
        row = tuple(values[name] for name in names)
        return mapper.copy_row(join(row)), join(mapper.row(row)), mapper.take_unmapped()

    for who in (to_wire("uuid", A), to_wire("uuid", C), NULL):
        by_bytes, by_fields, unmapped = mapped(who)
        assert by_bytes == by_fields
        assert bool(unmapped) == (who == to_wire("uuid", C))


@pytest.mark.parametrize("policy", list(OnUnmapped))
def test_null_and_unchanged_pass_every_policy(policy):
    made = route(table("t", [column("who", UUID)]), table("t", [column("who", UUID)]), maps=[users(policy)])
    mapper = Mapper(made, ["who"], IdMaps())
    assert mapper.row((NULL,)) == (NULL,)
    assert mapper.row((UNCHANGED,))[0] is UNCHANGED
    assert not mapper.take_unmapped()


def test_what_becomes_of_unknown_ids():
    def mapper(policy):
        made = route(table("t", [column("who", UUID)]), table("t", [column("who", UUID)]), maps=[users(policy)])
        return Mapper(made, ["who"], IdMaps({"users": {B: C}}))

    unknown = Unmapped("users", ("public", "t"), "who", A)
    keep, null, stop = mapper(OnUnmapped.KEEP), mapper(OnUnmapped.NULL), mapper(OnUnmapped.STOP)
    assert keep.row((to_wire("uuid", A),)) == (to_wire("uuid", A),)
    assert null.row((to_wire("uuid", A),)) == (NULL,)
    with pytest.raises(UnmappedId) as caught:
        stop.row((to_wire("uuid", A),))
    assert "t.who" in caught.value.message
    assert A not in caught.value.message + caught.value.hint
    for one in (keep, null, stop):
        assert one.take_unmapped() == {unknown}
        assert not one.take_unmapped()
        assert one.row((to_wire("uuid", B),)) == (to_wire("uuid", C),)


def test_a_changed_map_is_seen_by_mappers_that_exist():
    made = route(table("t", [column("who", TEXT)]), table("t", [column("who", TEXT)]), maps=[users()])
    maps = IdMaps({"users": {"a": "b"}})
    mapper = Mapper(made, ["who"], maps)
    maps.change("users", "a", "c")
    maps.change("users", "new", "n")
    assert (mapper.row((text("a"),)), mapper.row((text("new"),))) == ((text("c"),), (text("n"),))
    maps.change("users", "a", None)
    assert mapper.row((text("a"),)) == (text("a"),)
    assert maps.target_id("users", "a") is None
    assert dict(maps.entries("users")) == {"new": "n"}


def test_one_map_serves_columns_of_several_types():
    source = table("t", [column("n"), column("who", TEXT)])
    made = route(source, table("t", [column("n"), column("who", TEXT)]), maps=[users(OnUnmapped.KEEP, "n", "who")])
    mapper = Mapper(made, ["n", "who"], IdMaps({"users": {"7": "8"}}))
    assert mapper.row((number(7), text("7"))) == (number(8), text("8"))


@pytest.mark.parametrize(
    ("type_name", "source_id"),
    [("uuid", A), ("text", "ünï"), ("character varying", ""), ("bigint", str(-(2**63))), ("integer", "2147483647")],
)
def test_ids_have_one_wire_form_and_back(type_name, source_id):
    assert to_text(type_name, to_wire(type_name, source_id)) == source_id


@pytest.mark.parametrize(
    ("type_name", "bad"), [("uuid", "x"), ("integer", "2147483648"), ("bigint", "a"), ("date", "x")]
)
def test_an_id_of_another_type_is_refused_without_being_quoted(type_name, bad):
    with pytest.raises(ConfigError) as caught:
        IdMap("users", type_name, [(bad, bad)])
    assert "2147483648" not in caught.value.message


def test_upper_case_uuids_of_a_map_file_are_the_same_ids():
    ids = IdMap("users", "uuid", [(A.upper(), B.upper())])
    assert ids.fields[field(uuid.UUID(A).bytes)] == field(uuid.UUID(B).bytes)
    assert len(ids) == 1


def faults_of(source, target, maps=(), **columns):
    _, faults = plan_routes(
        [RouteSpec(source.name, target.name, columns)], {source.name: source}, {target.name: target}, maps
    )
    return [fault.message for fault in faults]


def test_faults_of_a_plan():
    source = table("t", [column("id"), column("v", TEXT)], key=("id",))
    assert faults_of(source, table("t", [column("id"), column("v", TEXT)])) == []
    assert faults_of(source, table("t", [column("v", TEXT)])) == [
        "key column id of the source has no home on the target"
    ]
    assert faults_of(source, table("t", [column("id"), column("n", not_null=True)])) == [
        "column n is NOT NULL, has no default and no source"
    ]
    assert faults_of(source, table("t", [column("id"), column("n", not_null=True, default="0")])) == []
    assert faults_of(source, table("t", [column("id")]), id="x") == [
        "column id: the source has no column x", "key column id of the source has no home on the target"
    ]  # fmt: skip
    assert faults_of(source, table("t", [column("id")]), nope="v") == ["there is no target column nope"]
    assert faults_of(source, table("t", [column("id")]), [users(OnUnmapped.KEEP, "v")]) == [
        "[id_maps.users] names column t.v, which no route fills"
    ]
    lookup = MapSpec("l", frozenset({("public", "t", "id")}), OnUnmapped.NULL, ("public", "else"), "k", "v")
    assert faults_of(source, table("t", [column("id")]), [lookup]) == [
        "[id_maps.l] looks up else, which is not replicated"
    ]


def test_missing_tables_are_named_with_their_side():
    here = {("public", "t"): table("t", [column("id", INT)])}
    spec = [RouteSpec(("public", "t"), ("public", "t"))]
    assert "on the source" in plan_routes(spec, {}, here)[1][0].message
    assert "on the target" in plan_routes(spec, here, {})[1][0].message


def test_generated_columns_are_neither_read_nor_written():
    source = table("t", [column("id"), column("twice", generated=True)], key=("id",))
    target = table("t", [column("id"), column("twice", generated=True, not_null=True)])
    made = route(source, target)
    assert (made.target_columns, made.dropped, made.defaulted) == (("id",), (), ())
