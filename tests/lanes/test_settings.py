"""What the settings say of lanes: who takes which table, what each lane is called, and what is refused."""

from __future__ import annotations

import pickle

import pytest

from replicator.config import Settings, load
from replicator.errors import ConfigError
from replicator.routing.lanes import crossing_keys
from replicator.routing.route import Route
from tests.routing.tables import column, table

EVERYTHING = [("public", name) for name in ("a", "b", "c", "d")]
LOOKUP = {"kind": "lookup", "table": "a", "key": "user_id", "value": "id"}


def targets(settings):
    return [spec.target[1] for spec in settings.route_specs(EVERYTHING)]


def test_without_lanes_nothing_is_different():
    settings = Settings()
    assert settings.split() == (settings,)
    assert settings.lane(1) is settings.require_one_lane() is settings
    assert (settings.lane_number, settings.prefix, settings.run_command) == (0, "", "replicator run")
    assert settings.elsewhere(EVERYTHING) == frozenset()


@pytest.mark.parametrize("tables", [(), ("a", "b", "c", "d")], ids=["all tables", "named"])
def test_every_table_is_in_one_lane(tables):
    settings = Settings(tables=tables, lanes={2: ["b"], 3: ["d", "public.c"]})
    lanes = settings.split()
    assert settings.lane_numbers == (1, 2, 3)
    assert [sorted(targets(lane)) for lane in lanes] == [["a"], ["b"], ["c", "d"]]
    assert sorted(targets(settings)) == ["a", "b", "c", "d"]
    for lane in lanes:
        assert lane.elsewhere(EVERYTHING) == {("public", name) for name in "abcd"} - {
            ("public", n) for n in targets(lane)
        }
        assert lane.split() == (lane,), "a lane has no lanes of its own"
    assert targets(settings.lane(1)) == ["a"], "and what is new on the source is the first one's"


def test_names_and_ports_of_lanes():
    settings = Settings(
        source={"slot": "s", "publication": "Ö"}, metrics={"listen": "[::1]:9187"}, lanes={2: ["b"], 3: ["c"]}
    )
    assert [(one.source.slot, one.source.publication, one.metrics.listen) for one in settings.split()] == [
        ("s", "Ö", "[::1]:9187"), ("s_2", "Ö_2", "[::1]:9188"), ("s_3", "Ö_3", "[::1]:9189")]  # fmt: skip
    assert [one.run_command for one in settings.split()] == [f"replicator run --lane {n}" for n in (1, 2, 3)]
    assert [one.prefix for one in settings.split()] == ["lane 1: ", "lane 2: ", "lane 3: "]


@pytest.mark.parametrize("listen", ["", "127.0.0.1:0"])
def test_a_port_that_is_off_or_free_stays_so(listen):
    assert Settings(metrics={"listen": listen}, lanes={2: ["b"]}).lane(2).metrics.listen == listen


def test_a_lane_stays_one_in_another_process():
    lane = pickle.loads(pickle.dumps(Settings(lanes={2: ["b"]}).lane(2)))
    assert (lane.lane_number, targets(lane)) == (2, ["b"])
    assert lane.model_copy(update={}).lane_number == 2


def test_tables_of_other_names_go_by_the_target():
    settings = Settings(tables=["a"], routes={"here": {"source": "there"}}, lanes={2: ["here"]})
    [spec] = settings.lane(2).route_specs([])
    assert (spec.source, spec.target) == (("public", "there"), ("public", "here"))


def test_id_maps_go_with_their_columns():
    settings = Settings(
        lanes={2: ["b"]},
        id_maps={"users": {"kind": "table", "columns": ["a.x", "b.y"]}, "of": {**LOOKUP, "columns": ["c.z"]}},
    )
    first, second = settings.split()
    assert {spec.name: spec.columns for spec in first.map_specs} == {
        "users": {("public", "a", "x")}, "of": {("public", "c", "z")}}  # fmt: skip
    assert {spec.name: spec.columns for spec in second.map_specs} == {"users": {("public", "b", "y")}}
    assert {spec.name for spec in settings.map_specs} == {"users", "of"}


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"lanes": {1: ["a"]}}, "number them 2, 3"),
        ({"lanes": {2: ["a"], 4: ["b"]}}, "number them 2, 3"),
        ({"lanes": {2: ["a"], 3: ["b", "public.a"]}}, "table a is in lanes 2 and 3: name it in one"),
        ({"lanes": {2: []}}, "at least 1 item"),
        ({"lanes": {2: ["x"]}, "tables": ["a"]}, "not among the tables to replicate: x: add them"),
        ({"lanes": {2: ["a"]}, "tables": ["a"]}, "no table is left for lane 1"),
        ({"lanes": {2: ["b"]}, "id_maps": {"of": {**LOOKUP, "columns": ["b.c"]}}}, "looks up a of lane 1 for b"),
        ({"lanes": {2: ["a"]}, "id_maps": {"of": {**LOOKUP, "columns": ["b.c"]}}}, "looks up a of lane 2 for b"),
        ({"lanes": {2: ["here"]}, "routes": {"here": {"source": "a"}},
          "id_maps": {"of": {**LOOKUP, "columns": ["b.c"]}}}, "looks up a of lane 2 for b"),
        ({"lanes": {2: ["b"]}, "source": {"slot": "s" * 43}}, "at most 42 characters"),
        ({"lanes": {2: ["b"]}, "source": {"publication": "ö" * 31}}, "at most 61 bytes"),
        ({"lanes": {2: ["b"]}, "metrics": {"listen": "127.0.0.1:65535"}}, "choose a lower one"),
    ],
)  # fmt: skip
def test_faults_say_what_and_how_to_mend(values, fault):
    with pytest.raises(ValueError, match=fault):
        Settings(**values)


def test_a_lane_that_does_not_exist_is_a_fault_of_usage():
    with pytest.raises(ConfigError, match="no lane 3: the settings have lanes 1 and 2"):
        Settings(lanes={2: ["b"]}).lane(3)
    with pytest.raises(ConfigError, match="no lane 2: the settings have lane 1 alone"):
        Settings().lane(2)


def test_one_service_must_be_of_one_lane():
    with pytest.raises(ConfigError, match="lanes 1, 2 and 3, each with a service of its own") as caught:
        Settings(lanes={2: ["b"], 3: ["c"]}).require_one_lane()
    assert "`replicator run --lane 3`" in caught.value.hint


def test_lanes_from_file_and_environment(tmp_path, monkeypatch):
    file = tmp_path / "replicator.toml"
    file.write_text('[lanes]\n2 = ["b"]\n3 = ["c", "d"]\n')
    assert load(file).lanes == {2: ("b",), 3: ("c", "d")}
    monkeypatch.chdir(tmp_path)
    file.unlink()
    monkeypatch.setenv("REPLICATOR_LANES__2", '["d"]')
    assert load().lane_of == {("public", "d"): 2}


def test_foreign_keys_between_lanes():
    tables = (table("a", [column("id")]), table("b", [column("id")], references=("a", "elsewhere")))
    routes = [Route(each, each, (), (), ()) for each in tables]
    names = {route.name for route in routes}
    assert crossing_keys({}, routes, names) == []
    [fault] = crossing_keys({("public", "b"): 2}, routes, names)
    assert (fault.table, "b_a" in fault.message, "lane 2" in fault.message) == (("public", "b"), True, True)
    assert "one lane" in fault.remedy
