"""Every kind of corruption is found, counted exactly and named by its key; equal data is equal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from replicator.postgres.connection import connect
from replicator.verify.plan import plan_table
from replicator.verify.rows import stream_rows
from tests.conftest import ALL_PAIRS
from tests.verify.sides import Sides, counts

BITING = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE place AS (street text, number int);
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE TABLE bites (
    id bigint PRIMARY KEY,
    t text, v varchar(20), b char(8), j json, jb jsonb, n numeric, n2 numeric(7, 2), f8 float8, f4 float4,
    ts timestamptz, ts3 timestamptz(3), d date, iv interval, u uuid, by bytea, bo boolean, m mood, p place,
    pos positive, ta text[], ma mood[], ua uuid[], r int4range, ip inet, bits bit(3)
);
"""
BITING_ROWS = """
INSERT INTO bites (id) SELECT g FROM generate_series(-5, 20) g;
UPDATE bites SET t = '', v = '', b = '', ta = '{}', by = '', n = 'NaN', f8 = '-0', f4 = 'NaN', ts = 'infinity',
    d = '-infinity', jb = '{}', bo = false WHERE id = 0;
UPDATE bites SET t = E'\\t\\n\\\\N "quoted" ü 漢 🙂', v = '\\N', b = 'a', j = '{ "b" : 1,  "a":2, "a": 3 }',
    jb = '{"b": 1.00, "a": null}', n = '0.00', n2 = '-12345.67', f8 = '1e-300', f4 = 'Infinity',
    ts = '2024-02-29 23:59:59.999999+02', ts3 = '2024-02-29 23:59:59.999', d = '0044-03-15 BC',
    iv = '1 mon -1 day 00:00:00.000001', u = 'ffffffff-ffff-ffff-ffff-ffffffffffff', by = '\\x00ff00', bo = true,
    m = 'happy', p = ROW(NULL, 3), pos = 1, ta = '{a,NULL,"","{}"}', ma = '{sad,NULL}', ua = ARRAY[gen_random_uuid()],
    r = '[1,5)', ip = '::1/64', bits = '101' WHERE id = 1;
UPDATE bites SET t = repeat('x', 1000000), by = convert_to(repeat('y', 300000), 'UTF8') WHERE id = 2;
"""


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_equal_data_is_equal(sides: Sides) -> None:
    """Values that compare equal, print alike or differ by OIDs only must not be mistaken for differences."""
    sides.on_target("CREATE TABLE shift_oids (); CREATE TYPE shifts AS ENUM ()")
    sides.on_both(BITING)
    sides.on_source(BITING_ROWS)
    sides.copy_by_text("bites")
    report = sides.verify(live=False)
    [table] = report.tables
    assert report.equal, report.summary()
    assert (table.source_rows, table.target_rows) == (26, 26)
    assert table.keys == ()
    assert report.to_json()["equal"] is True


CHANGES = {
    "text": "t = t || ' '",
    "NULL to ''": "b = NULL, t = ''",
    "varchar": "v = 'x'",
    "json, same value, other text": """j = '{"b":1,"a":2, "a":3}'""",
    "jsonb": """jb = '{"b": 1.0, "a": null}'""",
    "scale of a number": "n = '0.000'",
    "number": "n2 = -12345.66",
    "float": "f8 = 1.0000000000000002e-300",
    "microsecond": "ts = ts - interval '1 microsecond'",
    "date": "d = d + 1",
    "interval that is equal": "iv = '29 days 00:00:00.000001'",
    "uuid": "u = gen_random_uuid()",
    "bytea": "by = '\\x00ff01'",
    "boolean": "bo = NOT bo",
    "enum": "m = 'ok'",
    "composite": "p = ROW('', 3)",
    "array": 'ta = \'{a,NULL,"","{ }"}\'',
    "array of enums": "ma = '{sad,ok}'",
    "range": "r = '[1,6)'",
    "inet": "ip = '::1/65'",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_value_is_found(sides: Sides, change: str) -> None:
    sides.on_both(BITING)
    sides.on_source(BITING_ROWS)
    sides.copy_by_text("bites")
    sides.on_target(f"UPDATE bites SET {change} WHERE id = 1")
    table = sides.table(live=False)
    assert counts(table) == (0, 0, 1)
    assert table.keys == ("1",)
    assert not table.equal


def test_negative_zero_is_not_zero(sides: Sides) -> None:
    """SQL calls them equal; as text and to a division they are not."""
    sides.on_both("CREATE TABLE t (id int PRIMARY KEY, f float8)")
    sides.on_source("INSERT INTO t VALUES (1, '-0')")
    sides.on_target("INSERT INTO t VALUES (1, '0')")
    assert counts(sides.table(live=False)) == (0, 0, 1)


def test_one_byte_of_a_toasted_value(sides: Sides) -> None:
    sides.on_both("CREATE TABLE t (id uuid PRIMARY KEY, body text)")
    sides.on_both("ALTER TABLE t ALTER body SET STORAGE EXTERNAL")
    sides.on_source("INSERT INTO t SELECT gen_random_uuid(), repeat('a', 1048576) FROM generate_series(1, 3)")
    sides.copy("t")
    assert sides.table(live=False).equal
    [(key,)] = sides.target.execute(
        "UPDATE t SET body = overlay(body placing 'b' from 700000) WHERE id = (SELECT max(id::text)::uuid FROM t)"
        " RETURNING id::text"
    )
    table = sides.table(live=False)
    assert counts(table) == (0, 0, 1)
    assert table.keys == (key,)


def test_missing_extra_and_swapped_rows(sides: Sides) -> None:
    sides.on_both("CREATE TABLE t (id int PRIMARY KEY, v text)")
    sides.on_source("INSERT INTO t SELECT g, 'v' || g FROM generate_series(-1000, 1000) g")
    sides.copy("t")
    sides.on_target("DELETE FROM t WHERE id IN (-1000, -7, 1000)")
    sides.on_target("INSERT INTO t VALUES (-1001, 'new'), (5000, 'new')")
    sides.on_target("UPDATE t SET v = CASE id WHEN 1 THEN 'v2' ELSE 'v1' END WHERE id IN (1, 2)")
    table = sides.table(live=False)
    assert (table.source_rows, table.target_rows) == (2001, 2000)
    assert counts(table) == (3, 2, 2)
    assert set(table.keys) == {"-1001", "-1000", "-7", "1", "2", "1000", "5000"}


def test_more_differences_than_keys_are_named(sides: Sides) -> None:
    """20 keys are enough to look; the counts stay exact over several chunks."""
    sides.on_both("CREATE TABLE t (id int PRIMARY KEY)")
    sides.on_source("INSERT INTO t SELECT generate_series(1, 5000)")
    sides.on_target("INSERT INTO t SELECT generate_series(2501, 7400)")
    table = sides.table(live=False)
    assert counts(table) == (2500, 2400, 0)
    assert len(table.keys) == 20


def test_an_empty_side(sides: Sides) -> None:
    for table in ("a", "b", "c"):
        sides.on_both(f"CREATE TABLE {table} (id int PRIMARY KEY)")
    sides.on_source("INSERT INTO a VALUES (1)")
    sides.on_target("INSERT INTO b VALUES (1)")
    a, b, c = sides.verify(live=False).tables
    assert [counts(table) for table in (a, b, c)] == [(1, 0, 0), (0, 1, 0), (0, 0, 0)]


def test_a_row_in_another_partition(sides: Sides) -> None:
    """The target's key is wider than the source's: the same ID may be there twice."""
    sides.on_source("CREATE TABLE r (id int PRIMARY KEY, at date NOT NULL, v int)")
    sides.on_target(
        "CREATE TABLE r (id int, at date NOT NULL, v int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
        "CREATE TABLE r1 PARTITION OF r FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');"
        "CREATE TABLE r2 PARTITION OF r DEFAULT"
    )
    sides.on_source("INSERT INTO r SELECT g, date '2024-01-01' + g, g FROM generate_series(0, 60) g")
    sides.copy("r")
    assert sides.table(live=False).equal
    sides.on_target("UPDATE r SET at = '2024-03-15' WHERE id = 3")
    table = sides.table(live=False)
    assert (counts(table), table.keys) == ((0, 0, 1), ("3",))
    sides.on_target("INSERT INTO r VALUES (3, '2024-01-04', 3)")
    table = sides.table(live=False)
    assert (counts(table), table.keys) == ((0, 1, 0), ("3",))


def test_a_partitioned_source(sides: Sides) -> None:
    sides.on_source(
        "CREATE TABLE r (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);"
        "CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (10); CREATE TABLE r2 PARTITION OF r DEFAULT"
    )
    sides.on_target("CREATE TABLE r (id int PRIMARY KEY, v text)")
    sides.on_source("INSERT INTO r SELECT g, g FROM generate_series(1, 30) g")
    sides.copy("r")
    sides.on_target("UPDATE r SET v = '' WHERE id IN (2, 20)")
    table = sides.table(live=False)
    assert (counts(table), table.keys) == ((0, 0, 2), ("2", "20"))


def test_children_of_an_inherited_table_are_not_its_rows(sides: Sides) -> None:
    """The publication sends the parent's own rows only."""
    sides.on_both("CREATE TABLE parent (id int PRIMARY KEY)")
    sides.on_source("CREATE TABLE child () INHERITS (parent); INSERT INTO child VALUES (2)")
    sides.on_both("INSERT INTO parent VALUES (1)")
    sides.on_target("CREATE TABLE child (id int)")
    [table] = sides.verify("parent", live=False).tables
    assert (table.equal, table.source_rows) == (True, 1)


def test_narrower_types_on_the_target(sides: Sides) -> None:
    """The target rounds and pads as its columns say; only what exceeds them differs."""
    sides.on_source(
        "CREATE TABLE n (id int PRIMARY KEY, at timestamptz, num numeric, v text, b text, padded char(6),"
        " times timestamptz[])"
    )
    sides.on_target(
        "CREATE TABLE n (id int PRIMARY KEY, at timestamptz(3), num numeric(6, 2), v varchar(4), b char(4),"
        " padded varchar(6), times timestamptz(0)[])"
    )
    sides.on_source(
        "INSERT INTO n VALUES"
        " (1, '2024-01-01 00:00:00.0005+00', 1.005, 'abcd   ', 'ab', 'ab', '{2024-01-01 00:00:00.5+00}'),"
        " (2, '2024-01-01 23:59:59.9996+00', -9999.994, 'ü漢🙂', 'abcd  ', '', '{}'),"
        " (3, 'infinity', 'NaN', NULL, NULL, NULL, NULL)"
    )
    sides.copy("n")
    assert sides.table(live=False).equal
    # What the target could never have taken in must not be cut into looking equal.
    for change in ("v = '%s' WHERE id = 1", "num = '%s' WHERE id = 2", "b = '%s' WHERE id = 3"):
        too_long, cut = {"v": ("abcdX", "abcd"), "n": ("123456.7", "9999.99"), "b": ("abcde", "abcd")}[change[0]]
        sides.on_source(f"UPDATE n SET {change}".replace("%s", too_long))
        sides.on_target(f"UPDATE n SET {change}".replace("%s", cut))
    table = sides.table(live=False)
    assert (counts(table), table.keys) == ((0, 0, 3), ("1", "2", "3"))


KEYS: dict[str, tuple[str, list[str]]] = {
    "int2": ("smallint", ["-32768", "-1", "0", "1", "32767"]),
    "int8": ("bigint", ["-9223372036854775808", "-1", "0", "256", "9223372036854775807"]),
    "uuid": ("uuid", [f"{g:08x}-0000-4000-8000-{0xFFFFFFFFFFFF - g:012x}" for g in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF)]),
    "text": ("text", ["", "a", "A", "ab", "a b", "a-b", "é", "z", "Z", "\x01", "\U0001f642", "ﬀ"]),
    "varchar": ("varchar(8)", ["B", "a", "_", "10", "9"]),
    "char": ("char(5)", ["a", "a\tb", "a b", "b", "A"]),
    "timestamptz": ("timestamptz", ["-infinity", "0100-01-01 BC", "1999-12-31 23:59:59.999999Z", "2024-01-01"]),
    "date": ("date", ["1999-12-31", "2000-01-01", "2000-01-02", "infinity", "0001-01-01 BC"]),
    "bytea": ("bytea", ["\\x", "\\x00", "\\x00ff", "\\xff"]),
    "boolean": ("boolean", ["f", "t"]),
    "numeric": ("numeric", ["-10", "-9.99", "-0.001", "0", "9", "10", "100000000000000000000", "NaN"]),
    "float8": ("float8", ["-Infinity", "-1.5", "0", "1e-300", "1e300", "NaN"]),
    "interval": ("interval", ["-1 day", "00:00:01", "1 mon", "31 days"]),
    "inet": ("inet", ["10.0.0.1", "9.0.0.1", "::1"]),
    "enum": ("mood", ["sad", "ok", "happy"]),
    "domain": ("code", ["B", "a", "C"]),
    "int array": ("integer[]", ["{}", "{1}", "{1,2}", "{10}", "{2}"]),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_any_type(make_sides: Callable[..., Sides], kind: str) -> None:
    """Each value in turn is missing, and changed. What both sides send must be in the order that Python expects."""
    type_sql, values = KEYS[kind]
    sides = make_sides()
    sides.on_both("CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy'); CREATE DOMAIN code AS varchar(3)")
    sides.on_both(f"CREATE TABLE k (part int, id {type_sql}, v int, PRIMARY KEY (id, part))")
    for part in (1, 2):
        for value in values:
            sides.on_source(f"INSERT INTO k VALUES ({part}, %s, 0)", value)
    sides.copy("k")
    assert sides.table(live=False).equal
    assert_ordered(sides)
    for value in values:
        sides.on_target(f"DELETE FROM k WHERE part = 1 AND id = %s::{type_sql}", value)
        sides.on_target(f"UPDATE k SET v = 1 WHERE part = 2 AND id = %s::{type_sql}", value)
        [(shown,)] = sides.source.execute(f"SELECT DISTINCT (%s::{type_sql})::text FROM k", [value])
        table = sides.table(live=False)
        assert counts(table) == (1, 0, 1), value
        if kind not in ("timestamptz", "date"):  # shown in the session's own style
            assert set(table.keys) == {f"{shown}, 1", f"{shown}, 2"}
        sides.on_target("TRUNCATE k")
        sides.copy("k")


def assert_ordered(sides: Sides) -> None:
    """A wrong order would be found out by looking again, at a price: so look at the order itself."""
    [route] = sides.routes()
    plan = plan_table(route, utf8=True)
    assert plan.ordered
    for side, dsn in (("source", sides.settings.source.dsn), ("target", sides.settings.target.dsn)):
        with connect(dsn, side, purpose="test") as conn:
            ranks = [plan.rank(plan.key_of_row(row)) for row in stream_rows(conn, side, plan)]
        assert ranks == sorted(ranks)
        assert len(set(map(str, ranks))) == len(ranks) > 0


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_text_keys_under_different_collations(sides: Sides) -> None:
    """An ICU collation here and C there order the same keys differently."""
    if not sides.source.execute("SELECT FROM pg_collation WHERE collname = 'und-x-icu'").fetchall():
        pytest.skip("this source has no ICU collations")
    sides.on_source('CREATE TABLE c (id text COLLATE "und-x-icu" PRIMARY KEY, v int)')
    sides.on_target('CREATE TABLE c (id text COLLATE "C" PRIMARY KEY, v int)')
    sides.on_source(
        "INSERT INTO c SELECT chr(a) || chr(b), a FROM generate_series(45, 122) a, generate_series(45, 122) b"
    )
    sides.copy("c")
    assert sides.table(live=False).equal
    assert_ordered(sides)
    sides.on_target("UPDATE c SET v = 0 WHERE id IN ('aZ', '_-'); DELETE FROM c WHERE id = 'Za'")
    table = sides.table(live=False)
    assert (counts(table), set(table.keys)) == ((1, 0, 2), {"aZ", "_-", "Za"})
