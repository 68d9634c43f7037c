"""Values and names that bite, all the way through a real stream."""

from __future__ import annotations

import psycopg
import pytest

from replicator.errors import ReplicatorError, RowRejected
from tests.conftest import ALL_PAIRS

TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'ünï');
CREATE TYPE pair AS (n int, m mood);
CREATE DOMAIN short AS varchar(9) CHECK (VALUE <> 'x');
"""
KINDS = """
CREATE TABLE kinds (
    id int PRIMARY KEY, moods mood[], p pair, ps pair[], s short, r tstzrange, mr int4multirange, b bytea, j jsonb,
    raw json, n numeric, f float8, i interval, t timestamptz, d date, net inet, bits bit varying, c char(4), v text[]
);
"""
VALUES = [
    """(1, '{sad,NULL}', '(1,ünï)', '{"(2,sad)",NULL}', 'a', '[2024-01-01,)', '{[1,2)}', '\\x00ff', '{"b":[1.0]}',
        '{"b":1,  "a":2}', 'NaN', '-0', '1 mon -1 day', 'infinity', '-infinity', '::1', '101', 'ab', '{a,NULL,""}')""",
    """(2, '{}', '(,)', '{}', NULL, 'empty', '{}', '', 'null', '[]', 'Infinity', 'NaN', '-00:00:01', '4713-01-01 BC',
        '5874897-12-31', '10.0.0.0/8', '', '', '{}')""",
    "(3)",
]


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_values_of_every_kind(make_case):
    case = make_case(TYPES + KINDS, "CREATE TYPE filler AS ENUM ('a');" + TYPES + KINDS)
    case.execute(*(f"INSERT INTO kinds VALUES {values}" for values in VALUES))
    case.execute("INSERT INTO kinds SELECT k.id + 10 * g, moods, p, ps, s, r, mr, b, j, raw, g * n, f, i, t, d, net,"
                 " bits, c, v FROM kinds k, generate_series(1, 60) g")  # fmt: skip
    case.execute("UPDATE kinds SET moods = moods || 'sad'::mood, p.n = 7 WHERE id % 10 = 1", "UPDATE kinds SET s = 'b'")
    case.execute("DELETE FROM kinds WHERE id % 10 = 2 AND id > 100", "UPDATE kinds SET id = id + 5000 WHERE id > 500")
    case.same("kinds")


def test_a_domain_that_forbids_null(make_case):
    """The other columns of a deleted row's key, and untouched values, are no values of it."""
    case = make_case(
        "CREATE DOMAIN filled AS text NOT NULL; CREATE DOMAIN nothing AS text CHECK (VALUE IS NOT NULL);"
        "CREATE TABLE t (id int PRIMARY KEY, d filled, e nothing, v text);"
        "ALTER TABLE t ALTER d SET STORAGE EXTERNAL;",
        seed="INSERT INTO t SELECT i, repeat('x', 5000), 'e', 'v' FROM generate_series(1, 6) i;",
    )
    case.execute(
        "UPDATE t SET v = 'w' WHERE id = 1", "UPDATE t SET d = 'short' WHERE id = 2", "DELETE FROM t WHERE id = 3"
    )
    case.execute("UPDATE t SET id = 40 WHERE id = 4", "UPDATE t SET id = 50, d = 'd' WHERE id = 5")
    case.same("t")


def test_keys_of_many_types(make_case):
    case = make_case(
        TYPES + "CREATE TABLE a (k text PRIMARY KEY, v int); CREATE TABLE b (k mood PRIMARY KEY, v int);"
        "CREATE TABLE c (k numeric PRIMARY KEY, v int);"
        "CREATE TABLE d (k timestamptz, l date, v int, PRIMARY KEY (k, l));"
        "CREATE TABLE e (k int[] PRIMARY KEY, v int); CREATE TABLE f (k jsonb PRIMARY KEY, v int);"
        "CREATE TABLE g (k short PRIMARY KEY, v int); CREATE TABLE h (k bytea PRIMARY KEY, v int);"
        "CREATE TABLE i (k char(4) PRIMARY KEY, v int); CREATE TABLE j (k inet PRIMARY KEY, v int);",
        seed="INSERT INTO a VALUES (''), ('ü'); INSERT INTO b VALUES ('sad'), ('ünï');"
        "INSERT INTO c VALUES (1.0), ('NaN');"
        "INSERT INTO d VALUES ('2024-01-01', '2024-01-01'), ('infinity', '-infinity');"
        "INSERT INTO e VALUES ('{}'), ('{1}');"
        "INSERT INTO f VALUES ('1'), ('{\"a\": 1}'); INSERT INTO g VALUES ('a'), ('b');"
        "INSERT INTO h VALUES (''), ('\\x00');"
        "INSERT INTO i VALUES ('a'), (''); INSERT INTO j VALUES ('::1'), ('10.0.0.1');",
    )
    for table in "abcdefghij":
        case.execute(f"UPDATE {table} SET v = 1", f"DELETE FROM {table} WHERE ctid = (SELECT min(ctid) FROM {table})")
    case.same(*"abcdefghij")


def test_citext_keys(make_case, pair):
    """Its operators live where the extension does, which no search_path of ours shows."""
    for dsn in (pair.source_dsn, pair.target_dsn):
        with psycopg.connect(dsn) as conn:
            if not conn.execute("SELECT FROM pg_available_extensions WHERE name = 'citext'").fetchall():
                pytest.skip("the server has no citext")
    case = make_case(
        "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext;"
        "CREATE TABLE t (k ext.citext PRIMARY KEY, v int);"
        "CREATE TABLE u (id int PRIMARY KEY, c ext.citext, cs ext.citext[]);",
        seed="INSERT INTO t VALUES ('Ab', 1), ('c', 2), ('d', 3); INSERT INTO u VALUES (1, 'Ü', '{a,B}');",
    )
    case.execute(
        "UPDATE t SET v = 9 WHERE k = 'AB'", "UPDATE t SET k = 'AB' WHERE k = 'ab'", "DELETE FROM t WHERE k = 'C'"
    )
    case.execute("UPDATE u SET c = 'ü'", "INSERT INTO u VALUES (2, 'x', NULL)")
    case.same("t", "u")


NAMES = [
    "select",
    'Quoted "Name"',
    "100%",
    "%s %(x)s %b",
    "ünïcode ❄",
    "a.b",
    "n" * 63,
    "back\\slash",
    "it's",
    "t",
    "s",
    "n",
]


def test_names_that_bite(make_case):
    def quoted(name):
        return '"' + name.replace('"', '""') + '"'

    columns = [f"{quoted(name)} int" for name in NAMES]
    table, schema = quoted('%s "Tä.ble"'), quoted("sch%ema")
    full = f"{schema}.{table}"
    key = f"{quoted(NAMES[3])}, {quoted(NAMES[0])}"
    ddl = f"CREATE SCHEMA {schema}; CREATE TABLE {full} ({', '.join(columns)}, PRIMARY KEY ({key}));"
    case = make_case(ddl, ddl, tables=['sch%ema.%s "Tä.ble"'])
    case.execute(
        f"INSERT INTO {full} SELECT {', '.join(f'i + {n}' for n in range(len(NAMES)))} FROM generate_series(1, 150) i"
    )
    case.execute(f"UPDATE {full} SET {quoted(NAMES[6])} = 0 WHERE {quoted(NAMES[1])} < 9",
                 f"UPDATE {full} SET {quoted(NAMES[3])} = -1 WHERE {quoted(NAMES[1])} = 20",
                 f"DELETE FROM {full} WHERE {quoted(NAMES[2])} = 30")  # fmt: skip
    case.drain()
    rows = [conn.execute(f"SELECT t::text FROM {full} t ORDER BY 1").fetchall() for conn in (case.source, case.target)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 149
    case.execute(f"TRUNCATE {full}")
    case.drain()
    assert case.rows(f"SELECT count(*) FROM {full}") == [(0,)]


def test_a_narrower_precision_rounds_as_the_target_would(make_case):
    case = make_case(
        "CREATE TABLE t (id int PRIMARY KEY, at timestamptz, n numeric, v text);",
        "CREATE TABLE t (id int PRIMARY KEY, at timestamptz(3), n numeric(8,2), v varchar(4));",
    )
    case.execute("INSERT INTO t SELECT i, '2024-01-01 00:00:00.0005'::timestamptz + i * interval '499 microseconds',"
                 " i / 7.0, 'v' || i FROM generate_series(1, 200) i")  # fmt: skip
    case.execute("UPDATE t SET at = at + interval '1 microsecond', n = 0.005 WHERE id < 9")
    case.same("t", source_columns={"at": "s.at::timestamptz(3)", "n": "s.n::numeric(8,2)"})


@pytest.mark.parametrize(
    ("target_type", "statement"),
    [
        (
            "varchar(4)",
            "INSERT INTO t SELECT i, CASE WHEN i = 150 THEN 'secret-word' END FROM generate_series(1, 300) i",
        ),
        ("varchar(4)", "INSERT INTO t VALUES (1, 'secret-word')"),
        ("text NOT NULL", "INSERT INTO t VALUES (1, NULL)"),
        ("text CHECK (v <> 'secret-word')", "INSERT INTO t VALUES (1, 'secret-word')"),
        ("text UNIQUE", "INSERT INTO t VALUES (1, 'secret-word'), (2, 'secret-word')"),
    ],
)
def test_a_row_that_the_target_refuses_stops_the_stream(make_case, target_type, statement):
    """The error names the table, and where it can the column or constraint; it never quotes a value."""
    case = make_case(
        "CREATE TABLE t (id int PRIMARY KEY, v text);", f"CREATE TABLE t (id int PRIMARY KEY, v {target_type});"
    )
    case.drain()
    before = case.checkpoint().applied_lsn
    case.execute(statement)
    error = case.fails(RowRejected)
    assert "t refuses an insert" in error.message
    assert "secret" not in error.message + error.hint
    assert error.__cause__ is None
    assert case.rows("SELECT count(*) FROM t") == [(0,)]
    lsn = case.checkpoint().applied_lsn
    assert lsn >= before
    assert "t refuses" in case.fails(RowRejected).message, "the change is sent again"
    case.target.execute(
        "ALTER TABLE t DROP CONSTRAINT IF EXISTS t_v_check, DROP CONSTRAINT IF EXISTS t_v_key,"
        " ALTER v DROP NOT NULL, ALTER v TYPE text"
    )
    case.same("t")


@pytest.mark.parametrize("kind", ["regclass", "regtype", "regproc", "regprocedure", "regnamespace", "regrole"])
def test_a_value_that_the_target_takes_for_a_name_is_not_repeated(make_case, kind):
    """The server reports it as it reports a table that somebody has dropped."""
    ddl = "CREATE TABLE t (id int PRIMARY KEY, secret text);"
    case = make_case(ddl, ddl + f"ALTER TABLE t ADD CHECK (secret::{kind} IS NOT NULL)")
    case.execute("INSERT INTO t VALUES (1, 'hunter2')", "INSERT INTO t VALUES (2, 'hunter2(int)')")
    error = case.fails(ReplicatorError)
    assert "hunter2" not in error.message + error.hint
    assert "target: " in error.message


def test_a_table_that_is_gone_is_named(make_case):
    case = make_case("CREATE TABLE t (id int PRIMARY KEY);")
    case.drain()
    case.target.execute("DROP TABLE t")
    case.execute("INSERT INTO t VALUES (1)")
    assert 'relation "public.t" does not exist' in case.fails(ReplicatorError).message
