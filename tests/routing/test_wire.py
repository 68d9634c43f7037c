"""Which types share a wire form: what `fit` says, held against what PostgreSQL itself takes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import psycopg
import pytest
from psycopg import sql

from replicator.model.row import NULL, UNCHANGED, join, split
from replicator.model.schema import Table
from replicator.postgres.catalog import load_tables
from replicator.postgres.connection import connect
from replicator.postgres.copy import CopyIn, copy_out
from replicator.routing.idmap import IdMaps
from replicator.routing.mapper import Mapper
from replicator.routing.route import RouteSpec, plan_routes
from replicator.routing.wire import fit
from tests.conftest import ALL_PAIRS, DatabasePair
from tests.oracle import assert_same_rows
from tests.routing.tables import INT, TEXT, UUID

TYPES = """
CREATE SCHEMA app;
CREATE TYPE app.mood AS ENUM ('sad', 'so so', 'ünï', 'fine');
CREATE TYPE pair AS (n int, t text, m app.mood);
CREATE TYPE nested AS (p pair, many pair[], moods app.mood[]);
CREATE DOMAIN short AS varchar(5) CHECK (VALUE <> 'x');
CREATE DOMAIN shorter AS short;
CREATE DOMAIN moods AS app.mood[];
CREATE DOMAIN one_pair AS pair;
CREATE TYPE span AS RANGE (subtype = int);
"""
# The target's OIDs must not be the source's by accident.
OTHER_OIDS = "CREATE TYPE filler AS ENUM ('a', 'b'); CREATE TABLE filler2 (); CREATE TYPE f3 AS (a int);"

PASSES = {
    "int": ("int", ["1", "-2147483648", None]),
    "numeric": ("numeric(12,2)", ["NaN", "1.005", "-1.10", None]),
    "numeric free": ("numeric", ["Infinity", "-Infinity", "NaN", "1.10", "1e-20"]),
    "numeric(20,6)": ("numeric(10,1)", ["1.25", "99.95"]),
    "float": ("float8", ["NaN", "-0", "Infinity", "1e308"]),
    "text": ("varchar(20)", ["ünï", "", "a\tb\\n", None]),
    "varchar(9)": ("text", ["x", "", None]),
    "char(5)": ("char(5)", ["a", "", "abcde"]),
    "char(4)": ("text", ["ab"]),
    "timestamptz": ("timestamptz(3)", ["2024-01-01 00:00:00.1235+05", "infinity", "-infinity", "4713-01-01 BC"]),
    "timestamp": ("timestamp(0)", ["2024-01-01 00:00:00.5"]),
    "date": ("date", ["infinity", "2024-02-29"]),
    "time": ("time", ["24:00:00"]),
    "timetz": ("timetz", ["10:00:00.5+03"]),
    "interval": ("interval", ["1 mon -2 days 03:04:05.6"]),
    "bool": ("bool", ["t", "f", None]),
    "uuid": ("uuid", ["00000000-0000-0000-0000-000000000001"]),
    "bytea": ("bytea", [r"\x00ff41", r"\x"]),
    "json": ("text", ['{"b": 1,  "a":2}']),
    "json same": ("json", ['{"b": 1,  "a":2}']),
    "jsonb": ("jsonb", ['{"b": 1.0, "a": [null, "ü"]}', "null"]),
    "inet": ("inet", ["::1/64", "10.0.0.1"]),
    "macaddr8": ("macaddr8", ["08:00:2b:01:02:03:04:05"]),
    "bit(3)": ("bit(3)", ["101"]),
    "varbit": ("varbit", ["", "1"]),
    "tsvector": ("tsvector", ["'a':1 'b':2"]),
    "tsquery": ("tsquery", ["'a' & !'b'"]),
    "point": ("point", ["(1,2)"]),
    "polygon": ("polygon", ["((0,0),(1,1),(1,0))"]),
    "pg_lsn": ("pg_lsn", ["1/2"]),
    "int4range": ("int4range", ["[1,5)", "empty", "(,)"]),
    "tstzrange": ("tstzrange", ["[2024-01-01,)"]),
    "int8multirange": ("int8multirange", ["{[1,2),[5,9)}", "{}"]),
    "span": ("span", ["[1,5)", "empty"]),
    "int[]": ("int[]", ["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[5:6]={1,2}"]),
    "text[]": ("varchar(9)[]", ['{a,"b c",NULL,""}']),
    "numeric[]": ("numeric(6,1)[]", ["{1.25,NaN}"]),
    "uuid[]": ("uuid[]", ["{00000000-0000-0000-0000-000000000001}"]),
    "app.mood": ("app.mood", ["sad", "ünï", None]),
    "app.mood ": ("text", ["so so"]),
    "app.mood[]": ("app.mood[]", ["{}", '{sad,NULL,"so so"}', "{{sad,fine},{fine,sad}}", "[0:1]={sad,fine}"]),
    "app.mood[] ": ("text[]", ['{"so so"}']),
    "pair": ("pair", ['(1,"a b",ünï)', "(,,)", None]),
    "pair[]": ("pair[]", ['{"(1,a,sad)",NULL,"(,,)"}', "{}"]),
    "nested": ("nested", ['("(1,a,sad)","{""(2,b,fine)"",NULL}","{sad}")', "(,,)"]),
    "short": ("short", ["abc", None]),
    "short ": ("text", ["abc"]),
    "shorter": ("varchar(5)", ["abc"]),
    "varchar(5)": ("shorter", ["abc"]),
    "short[]": ("short[]", ["{a,NULL}"]),
    "short[] ": ("text[]", ["{a,NULL}"]),
    "moods": ("moods", ["{sad,NULL}", "{}", None]),
    "moods ": ("app.mood[]", ["{sad,NULL}"]),
    "int  ": ("bigint", ["1", "-2147483648", "2147483647", None]),
    "smallint ": ("int", ["-32768"]),
    "smallint  ": ("bigint", ["-1"]),
    "int[] ": ("bigint[]", ["{1,NULL,-7}", "{{1},{2}}"]),
    "one_pair": ("one_pair", ["(1,a,sad)"]),
    "one_pair[]": ("pair[]", ['{"(1,a,sad)"}']),
}
# A cast of char(n) to text drops the blanks; on the wire they are part of the value, and stay.
EXPECTED = {"char(4)": "convert_from(bpcharsend(s.{0}), 'UTF8')"}
STAGED = [
    ("bigint", "int"), ("int", "text"), ("text", "int"), ("timestamp", "timestamptz"), ("json", "jsonb"),
    ("text", "json"), ("text", "app.mood"), ("bigint[]", "int[]"), ("pair", "other"), ("pair", "renamed"),
    ("aclitem", "aclitem"), ("aclitem[]", "aclitem[]"), ("regclass", "regclass"), ("regtype", "oid"),
    ("real", "float8"),
    ("pair", "text"), ("app.mood[]", "text"), ("bytea", "text"), ("short", "int"), ("holder", "holder"),
]  # fmt: skip


@dataclass
class Both:
    source: psycopg.Connection
    target: psycopg.Connection
    load: Callable[[], tuple[Table, Table]]


@pytest.fixture
def both(pair: DatabasePair) -> Iterator[Both]:
    def load() -> tuple[Table, Table]:
        found = []
        for side, dsn in (("source", pair.source_dsn), ("target", pair.target_dsn)):
            with connect(dsn, side, purpose="test") as conn:  # type: ignore[arg-type]
                found.append(load_tables(conn, [("public", "t")])["public", "t"])
        return found[0], found[1]

    with (
        psycopg.connect(pair.source_dsn, autocommit=True) as source,
        psycopg.connect(pair.target_dsn, autocommit=True) as target,
    ):
        source.execute(TYPES)
        target.execute(OTHER_OIDS + TYPES)
        yield Both(source, target, load)


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_what_passes_arrives_as_the_same_value(both, pair):
    """Every type in one table, sent by COPY through a mapper, compared with what SQL makes of the source's values."""
    names = [f"c{i}" for i in range(len(PASSES))]
    given = [(name.partition(" ")[0] if "." not in name else name.strip(), to) for name, (to, _) in PASSES.items()]
    for conn, types in ((both.source, [one for one, _ in given]), (both.target, [to for _, to in given])):
        conn.execute(f"CREATE TABLE t ({', '.join(f'{n} {t}' for n, t in zip(names, types, strict=True))})")
    for name, (source_type, _), (_, values) in zip(names, given, PASSES.values(), strict=True):
        for value in values:
            both.source.execute(
                sql.SQL("INSERT INTO t ({}) VALUES ({}::{})").format(
                    sql.Identifier(name), sql.Literal(value), sql.SQL(source_type)
                )
            )
    source, target = both.load()
    [route], faults = plan_routes([RouteSpec(source.name, source.name)], {source.name: source}, {source.name: target})
    assert not faults
    mapper = Mapper(route, names, IdMaps())
    with connect(pair.source_dsn, "source", purpose="test") as reader, \
            connect(pair.target_dsn, "target", purpose="test", autocommit=False) as writer:  # fmt: skip
        copy = CopyIn(writer, sql.SQL("COPY public.t FROM STDIN (FORMAT binary)"))
        for data in copy_out(reader, sql.SQL("COPY public.t TO STDOUT (FORMAT binary)")):
            copy.write(join(mapper.row(split(data))))
        count = copy.finish()
    expected = {
        name: EXPECTED.get(of, "s.{0}::{1}").format(name, to)
        for name, of, (_, to) in zip(names, PASSES, given, strict=True)
    }
    assert assert_same_rows(both.source, both.target, "t", source_columns=expected) == count > 100


@pytest.mark.parametrize("pair", ALL_PAIRS[:1], indirect=True)
def test_what_does_not_pass_is_refused_by_name(both):
    for conn in (both.source, both.target):
        conn.execute("CREATE TYPE other AS (n int, t text); CREATE TYPE renamed AS (n int, u text, m app.mood);"
                     "CREATE TYPE holder AS (r regclass)")  # fmt: skip
    for at, (source_type, target_type) in enumerate(STAGED):
        both.source.execute(f"DROP TABLE IF EXISTS t; CREATE TABLE t (c {source_type})")
        both.target.execute(f"DROP TABLE IF EXISTS t; CREATE TABLE t (c {target_type})")
        source, target = both.load()
        fault = fit(source.columns[0].type, target.columns[0].type).fault
        assert "staged route" in fault, f"{at}: {source_type} → {target_type}"


def test_null_and_unchanged_pass_every_rewrite():
    enum = replace(TEXT, oid=90_001, name="mood", kind="e")
    array = replace(TEXT, oid=90_002, name="mood[]", category="A", element=enum)
    composite = replace(TEXT, oid=90_003, name="pair", kind="c", attributes=(("a", INT), ("b", array)))
    other = replace(array, element=replace(enum, oid=70_001))
    for source, target in ((array, other), (composite, replace(composite, attributes=(("a", INT), ("b", other))))):
        rewrite = fit(source, target).rewrite
        assert rewrite is not None
        assert rewrite(NULL) == NULL
        assert rewrite(UNCHANGED) is UNCHANGED


def test_equal_builtin_types_are_not_touched():
    ints = replace(INT, oid=1007, name="integer[]", category="A", element=INT)
    for type_ in (INT, TEXT, UUID, ints):
        assert fit(type_, type_).rewrite is None
        assert fit(type_, type_).fault == ""
