"""Settings: where they come from, what they mean, and what is wrong with them."""

from __future__ import annotations

import os

import pytest

from replicator.config import Settings, load, parse_size
from replicator.errors import ConfigError
from replicator.routing.idmap import MapSpec, OnUnmapped
from replicator.routing.route import RouteSpec


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("REPLICATOR_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path):
    def write(text, name="replicator.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1", 1), ("1B", 1), ("16MiB", 16 << 20), ("256MB", 256 << 20), ("1g", 1 << 30), (" 2 kB ", 2048),
     ("3T", 3 << 40), ("5GIB", 5 << 30)],
)  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1.5MB", "1 PB", "1MBB", "1 M B"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="16MiB"):
        parse_size(text)


def test_defaults_do_without_a_file():
    settings = load(source_dsn="dbname=a", target_dsn="dbname=b")
    assert (settings.source.dsn, settings.target.dsn) == ("dbname=a", "dbname=b")
    assert (settings.source.slot, settings.source.publication) == ("replicator", "replicator")
    assert (settings.stream.max_batch_rows, settings.stream.max_batch_bytes) == (20_000, 16 << 20)
    assert settings.snapshot.split_above == 256 << 20
    assert settings.metrics.listen == "127.0.0.1:9187"
    assert (settings.tables, settings.id_maps, settings.routes) == ((), {}, {})


def test_option_before_environment_before_file_before_default(write, monkeypatch):
    path = write(
        "[source]\ndsn = 'dbname=file'\nslot = 'file'\n[target]\ndsn = 'dbname=file'\n[snapshot]\nworkers = 2\n"
    )
    assert load(path).source.dsn == "dbname=file"
    monkeypatch.setenv("REPLICATOR_SOURCE__DSN", "dbname=env")
    monkeypatch.setenv("REPLICATOR_SNAPSHOT__SPLIT_ABOVE", "1MB")
    settings = load(path)
    assert (settings.source.dsn, settings.source.slot, settings.target.dsn) == ("dbname=env", "file", "dbname=file")
    assert (settings.snapshot.workers, settings.snapshot.split_above) == (2, 1 << 20)
    settings = load(path, source_dsn="dbname=option")
    assert (settings.source.dsn, settings.source.slot) == ("dbname=option", "file")


def test_which_file_is_read(write, monkeypatch):
    assert load().source.slot == "replicator"
    write("[source]\nslot = 'here'\n")
    assert load().source.slot == "here"
    other = write("[source]\nslot = 'there'\n", "other.toml")
    monkeypatch.setenv("REPLICATOR_CONFIG", str(other))
    assert load().source.slot == "there"
    assert load(write("[source]\nslot = 'named'\n", "named.toml")).source.slot == "named"


def test_a_named_file_must_be_there_and_be_toml(write, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="cannot read the settings file"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(write("[source\n"))
    monkeypatch.setenv("REPLICATOR_CONFIG", str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigError, match="cannot read"):
        load()


def test_one_line_per_fault_with_its_place_and_no_value(write):
    path = write(
        "extra = 1\n[source]\ndsn = 7\nslot = 'Bad-Name'\nslotname = 'x'\n[snapshot]\nworkers = 0\n"
        "[stream]\nmax_batch_bytes = 'secret-word'\non_new_column = 'perhaps'\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    lines = caught.value.message.splitlines()
    places = [line.removeprefix(f"{path}: ").partition(":")[0] for line in lines]
    assert sorted(places) == sorted(
        ["extra", "source.dsn", "source.slot", "source.slotname", "snapshot.workers", "stream.max_batch_bytes",
         "stream.on_new_column"]
    )  # fmt: skip
    assert all("unknown key" in line for line in lines if "extra" in line or "slotname" in line)
    assert "secret-word" not in caught.value.message
    assert "Bad-Name" not in caught.value.message


def test_a_dsn_shows_in_no_representation():
    assert "hunter2" not in repr(load(source_dsn="postgresql://u:hunter2@h/d", target_dsn="password=hunter2"))


MAP = {"kind": "table", "columns": ["profiles.user_id"]}


def test_two_maps_on_one_column_are_refused(write):
    path = write(
        "[id_maps.a]\nkind = 'table'\ncolumns = ['t.c', 't.d']\n[id_maps.b]\nkind = 'table'\ncolumns = ['public.t.c']\n"
    )
    with pytest.raises(ConfigError, match=r"column t\.c is in two id_maps: a, b"):
        load(path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"kind": "lookup"}, "a lookup needs table, key and value"),
        ({"kind": "lookup", "table": "t", "key": "k"}, "a lookup needs table, key and value"),
        ({"key": "k"}, "belong to a lookup"),
        ({"columns": []}, "at least 1"),
        ({"columns": ["no_dot"]}, "write a column as table.column"),
        ({"on_unmapped": "guess"}, "on_unmapped"),
        ({"kind": "oracle"}, "kind"),
    ],
)
def test_faults_of_id_maps(write, change, fault):
    values = "".join(f"{key} = {value!r}\n" for key, value in (MAP | change).items())
    with pytest.raises(ConfigError, match=fault):
        load(write(f"[id_maps.users]\n{values}"))


def test_id_maps_as_the_routes_see_them():
    settings = Settings(
        id_maps={
            "users": MAP,
            "of": {"kind": "lookup", "table": "app.profiles", "key": "user_id", "value": "id",
                   "columns": ["app.logs.who", "notes.who"], "on_unmapped": "null"},
        }
    )  # fmt: skip
    assert settings.map_specs == (
        MapSpec("users", frozenset({("public", "profiles", "user_id")}), OnUnmapped.KEEP),
        MapSpec("of", frozenset({("app", "logs", "who"), ("public", "notes", "who")}), OnUnmapped.NULL,
                ("app", "profiles"), "user_id", "id"),
    )  # fmt: skip
    assert [spec.is_lookup for spec in settings.map_specs] == [False, True]


def test_tables_and_routes():
    everything = [("public", "a"), ("public", "b")]
    assert Settings().route_specs(everything) == [RouteSpec(name, name) for name in everything]
    settings = Settings(
        tables=["a", "app.c"],
        routes={"a": {"columns": {"x": "y"}}, "renamed": {"source": "app.old"}},
    )
    assert settings.route_specs(everything) == [
        RouteSpec(("public", "a"), ("public", "a"), {"x": "y"}),
        RouteSpec(("app", "c"), ("app", "c")),
        RouteSpec(("app", "old"), ("public", "renamed")),
    ]
