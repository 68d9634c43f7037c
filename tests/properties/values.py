"""Types and SQL values that bite: what columns are made of, and what goes into them."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

# Types of our own, in a schema that stays. OIDs must differ between the sides: the target has more of them.
FILLER = "CREATE SCHEMA filler; CREATE TYPE filler.a AS ENUM ('a'); CREATE TABLE filler.b (a filler.a, b filler.a[]);"
TYPES = """
CREATE SCHEMA ty;
GRANT USAGE ON SCHEMA ty TO PUBLIC;
CREATE TYPE ty.mood AS ENUM ('sad', 'so so', 'ünï');
CREATE TYPE ty."Odd %s Type" AS ENUM ('a');
CREATE DOMAIN ty.short AS varchar(9) CHECK (VALUE <> 'x');
CREATE DOMAIN ty.shorter AS ty.short CHECK (length(VALUE) < 6);
CREATE DOMAIN ty.filled AS text NOT NULL;
CREATE DOMAIN ty.something AS int CHECK (VALUE IS NOT NULL);
CREATE DOMAIN ty.moods AS ty.mood[];
CREATE DOMAIN ty.many AS int[] CHECK (cardinality(VALUE) < 5);
CREATE TYPE ty.pair AS (n int, "M%" ty.mood, s ty.short);
CREATE TYPE ty.nest AS (p ty.pair, ps ty.pair[], d numeric(6,2), ms ty.moods);
CREATE DOMAIN ty.paired AS ty.pair CHECK ((VALUE).n IS DISTINCT FROM 13);
CREATE TYPE ty.frange AS RANGE (subtype = float8);
CREATE TYPE ty.mrange AS RANGE (subtype = ty.mood);
"""
RANDOM = "(SELECT string_agg(md5(i::text), '') FROM generate_series({0}, {0} + 299) i)"  # 9600 characters
REPEATED = "repeat('{0} ab', 5000)"


@dataclass(frozen=True)
class Kind:
    """A type, and literals of it; ``big`` are expressions of values that are stored out of line."""

    sql: str
    literals: tuple[str, ...]
    orders: bool = True  # has a default btree operator class: may be a key
    big: tuple[str, ...] = ()
    since: int = 14  # the oldest server that has it
    domain: bool = False  # has a constraint that may refuse NULL

    def __repr__(self) -> str:
        return self.sql


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'" if "\\" not in text else " E'" + _escaped(text) + "'"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "''")


def _big(wrap: str = "{}") -> tuple[str, ...]:
    return tuple(wrap.format(text.format(n)) for n in (1, 2) for text in (RANDOM, REPEATED))


INT = Kind("int", ("1", "2", "3", "4", "0", "-1", "2147483000"))
TEXT = Kind("text", ("a", "", "b", "NULL", "ünï ❄", "%s", "\\N \t\n'\"", "a "), big=_big())
KINDS = [
    INT,
    TEXT,
    Kind("bigint", ("1", "2", "-9223372036854775808", "9223372036854775807", "0")),
    Kind("smallint", ("1", "2", "-32768", "32767", "0")),
    Kind("boolean", ("f", "t")),
    Kind("numeric", ("1", "1.0", "1.00", "0", "NaN", "-Infinity", "1e100", "-0.000000000000000001", "12345.678")),
    Kind("numeric(8,3)", ("1", "1.5", "-99999.999", "0", "NaN")),
    Kind("real", ("0", "-0", "1.5", "NaN", "-Infinity", "1e-40")),
    Kind("double precision", ("0", "-0", "0.1", "NaN", "Infinity", "1e308", "5e-324")),
    Kind("varchar(12)", ("a", "", "b ", "ünï", "twelve chars")),
    Kind("char(5)", ("a", "", "b", "  c", "12345")),
    Kind('"char"', ("a", "", "b", "\\377")),
    Kind("name", ("a", "", "select", "n" * 63)),
    Kind("bytea", ("\\x", "\\x00", "\\xff00", "\\x5c"), big=_big("{}::bytea")),
    Kind("date", ("2024-02-29", "4713-01-01 BC", "5874897-12-31", "infinity", "-infinity")),
    Kind("time", ("00:00", "24:00", "12:34:56.789012")),
    Kind("timetz", ("00:00+14", "24:00-12", "12:34:56.789012+05:30")),
    Kind("timestamp", ("2024-01-01", "infinity", "0044-03-15 12:00 BC", "294276-12-31 23:59:59.999999")),
    Kind("timestamptz", ("2024-01-01+00", "-infinity", "2024-10-27 02:30+02", "2024-01-01 00:00:00.000001+00")),
    Kind("timestamptz(3)", ("2024-01-01 00:00:00.1235+00", "2024-01-01+00", "infinity")),
    Kind("interval", ("0", "1 mon -1 day", "-00:00:00.000001", "178000000 years", "30 days", "1 mon")),
    Kind("uuid", ("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
                  "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
    Kind("inet", ("::1", "10.0.0.1", "10.0.0.0/8", "2001:db8::/32")),
    Kind("cidr", ("10.0.0.0/8", "::/0", "192.168.1.1/32")),
    Kind("macaddr", ("08:00:2b:01:02:03", "00:00:00:00:00:00")),
    Kind("macaddr8", ("08:00:2b:01:02:03:04:05", "00:00:00:00:00:00:00:00")),
    Kind("bit(3)", ("101", "000", "111")),
    Kind("bit varying", ("", "1", "10101010101")),
    Kind("money", ("0", "-12.34", "92233720368547758.07")),
    Kind("json", ("null", '{"b":1,  "a":2, "a":3}', "[]", '"\\u00e9"'), orders=False,
         big=_big("to_json({})")),
    Kind("jsonb", ("null", '{"b": [1.0, 1e5], "a": {}}', "[]", '"\\u00e9"', "1.0", "1.00"), big=_big("to_jsonb({})")),
    Kind("jsonpath", ("$.a[*]", "$"), orders=False),
    Kind("xml", ("<a/>", "text", "<a b='c'>ü</a>"), orders=False, big=_big("{}::xml")),
    Kind("point", ("(0,0)", "(NaN,-0)"), orders=False),
    Kind("box", ("(1,1),(0,0)",), orders=False),
    Kind("path", ("[(0,0),(1,1)]", "((0,0),(1,1))"), orders=False),
    Kind("polygon", ("((0,0),(1,1),(1,0))",), orders=False),
    Kind("circle", ("<(0,0),1>",), orders=False),
    Kind("line", ("{1,2,3}",), orders=False),
    Kind("lseg", ("[(0,0),(1,1)]",), orders=False),
    Kind("tsvector", ("", "a:1A b:2 c", "'q''x':3"), big=_big("to_tsvector('simple', left({}, 9000))")),
    Kind("tsquery", ("!x", "a & !b <-> c:*A")),
    Kind("pg_lsn", ("0/0", "16/B374D848")),
    Kind("xid8", ("3", "18446744073709551615")),
    Kind("oid", ("0", "1", "4294967295")),
    Kind("oidvector", ("1", "1 2")),  # PostgreSQL does not take back an empty one in binary form
    Kind("int4range", ("empty", "[1,5)", "(,)", "[3,)")),
    Kind("numrange", ("empty", "[1.0,2.50]", "(,1)")),
    Kind("daterange", ("[2024-01-01,2024-02-01)", "(,infinity)", "empty")),
    Kind("tstzrange", ("[2024-01-01+00,)", "empty", "(,)")),
    Kind("int4multirange", ("{}", "{[1,2),[5,)}", "{(,)}")),
    Kind("int[]", ("{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[2:3]={7,8}", "{1}"),
         big=("(SELECT array_agg(i) FROM generate_series(1, 4000) i)",)),
    Kind("text[]", ("{}", '{"",NULL,"a b"}', '{{"\\"",x},{y,z}}', "{a}"), big=_big("ARRAY[{}, NULL]")),
    Kind("timestamptz[]", ("{}", "{infinity,NULL}", '{"2024-01-01+00"}')),
    Kind("numeric(5,1)[]", ("{}", "{1.5,NaN,NULL}")),
    Kind("jsonb[]", ("{}", '{"{\\"a\\": 1}",NULL}'), big=_big("ARRAY[to_jsonb({})]")),
    Kind("ty.mood", ("sad", "so so", "ünï")),
    Kind('ty."Odd %s Type"', ("a",)),
    Kind("ty.mood[]", ("{}", "{sad,NULL}", '[0:1]={"so so",ünï}')),
    Kind("ty.pair", ("(,,)", "(1,ünï,abc)", '(2,"so so",)'),
         big=()),
    Kind("ty.pair[]", ("{}", '{"(1,sad,a)",NULL,"(,,)"}')),
    Kind("ty.nest", ("(,,,)", '("(1,sad,)","{""(2,ünï,b)"",NULL}",1.5,"{sad}")', '("(,,)",{},NaN,{})')),
    Kind("ty.nest[]", ("{}", '{"(,,,)",NULL}')),
    Kind("ty.short", ("a", "", "ninechars"), domain=True),
    Kind("ty.shorter", ("a", "", "five5"), domain=True),
    Kind("ty.filled", ("a", "", "ü"), big=_big(), domain=True),
    Kind("ty.something", ("1", "2", "3"), domain=True),
    Kind("ty.moods", ("{}", "{sad,NULL}"), domain=True),
    Kind("ty.many", ("{}", "{1,NULL}"), domain=True),
    Kind("ty.paired", ("(,,)", "(1,ünï,abc)"), domain=True),
    Kind("ty.short[]", ("{}", "{a,NULL}")),
    Kind("ty.paired[]", ("{}", '{"(1,sad,a)"}')),
    Kind("ty.frange", ("empty", "[0,-0]", "[0.1,)")),
    Kind("ty.mrange", ("empty", "[sad,ünï)")),
]  # fmt: skip
REFUSE_NULL = ("ty.filled", "ty.something")


def literal(kind: Kind, text: str) -> str:
    return f"{quoted(text)}::{kind.sql}"


@st.composite
def values(draw: st.DrawFn, kind: Kind, *, nullable: bool, big: bool = False) -> str:
    """An SQL expression of this type."""
    choices = ["literal"] * 8 + ["null"] * (2 * nullable) + ["big"] * (3 * (big and bool(kind.big)))
    choice = draw(st.sampled_from(choices))
    if choice == "null":
        return f"NULL::{kind.sql}"
    if choice == "big":
        return f"{draw(st.sampled_from(kind.big))}::{kind.sql}"
    if kind.sql == "text" and draw(st.integers(0, 5)) == 5:
        text = draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6))
        return literal(kind, text)
    return literal(kind, draw(st.sampled_from(kind.literals)))
