"""Types that change on the source: nobody sends the rows of a table that is rewritten, so the target's change alike."""

from __future__ import annotations

import pytest

from tests.drift.moving import statement_of

MOODS = "CREATE TYPE mood AS ENUM ('sad', 'fine');"


def table(type_: str) -> str:
    return f"{MOODS} CREATE TABLE t (id int PRIMARY KEY, v {type_});"


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize(
    ("before", "after", "value", "using"),
    [
        pytest.param("int", "bigint", "1", "", id="int to bigint"),
        pytest.param("smallint", "int", "-1", "", id="smallint to int"),
        pytest.param("varchar(5)", "varchar(9)", "'abc'", "", id="longer varchar"),
        pytest.param("varchar(5)", "text", "'abc'", "", id="varchar to text"),
        pytest.param("numeric(6,2)", "numeric(8,4)", "1.25", "", id="more digits"),
        pytest.param("numeric(8,4)", "numeric(6,1)", "1.2545", "", id="fewer digits"),
        pytest.param("timestamp(3)", "timestamp(6)", "'2024-01-01 00:00:00.123456'", "", id="microseconds"),
    ],
)
def test_the_same_on_the_target_goes_on(moving, before, after, value, using, running):
    """Rows of the old type that are still in the slot fit the new one."""
    case = moving(table(before), rows=f"INSERT INTO t SELECT i, {value} FROM generate_series(1, 9) i;")
    if not running:
        case.stop()
    case.on_source(f"INSERT INTO t VALUES (20, {value})")
    case.on_source(f"ALTER TABLE t ALTER v TYPE {after} {using}", f"INSERT INTO t VALUES (30, {value})")
    if after not in ("varchar(9)", "text"):
        error = case.ends("t: .*(type of column v of the source is|column v: )", "ALTER TABLE t ALTER COLUMN v TYPE")
        case.target.execute(statement_of(error))
    case.same("t")


@pytest.mark.parametrize(
    ("before", "after", "using", "value"),
    [
        pytest.param("text", "int", "v::int", "'7'", id="text to int"),
        pytest.param("int", "text", "v::text", "7", id="int to text"),
        pytest.param("timestamp", "timestamptz", "v AT TIME ZONE 'UTC'", "'2024-01-01'", id="with time zone"),
        pytest.param("mood", "spirit", "v::text::spirit", "'sad'", id="another enum"),
        pytest.param("mood", "text", "v::text", "'sad'", id="enum to text"),
    ],
)
def test_with_using_on_both_sides(moving, before, after, using, value):
    case = moving(table(before), rows=f"INSERT INTO t SELECT i, {value} FROM generate_series(1, 9) i;")
    case.source.execute("CREATE TYPE spirit AS ENUM ('low', 'sad', 'fine')")
    case.on_source(f"INSERT INTO t VALUES (20, {value})")
    case.drain()
    alter = f"ALTER TABLE t ALTER v TYPE {after} USING {using}"
    case.on_source(alter, "INSERT INTO t VALUES (30, NULL)", "UPDATE t SET id = 40 WHERE id = 1")
    case.ends("ALTER TABLE t ALTER COLUMN v TYPE")
    case.target.execute("CREATE TYPE spirit AS ENUM ('low', 'sad', 'fine')")
    case.target.execute(alter)
    case.same("t")


def test_rows_of_the_old_type_that_do_not_fit_need_a_copy(moving):
    case = moving(table("text"), rows="INSERT INTO t SELECT i, '7' FROM generate_series(1, 9) i;")
    case.stop()
    case.on_source("INSERT INTO t VALUES (20, '20')")
    alter = "ALTER TABLE t ALTER v TYPE int USING v::int"
    case.on_source(alter, "INSERT INTO t VALUES (30, 30)")
    case.target.execute(alter)
    case.ends("t: the type of source column v has changed", "`replicator snapshot --table t`")
    case.copy("t")
    case.same("t")


def test_a_new_label(moving):
    case = moving(table("mood"), rows="INSERT INTO t VALUES (1, 'sad');")
    case.source.execute("ALTER TYPE mood ADD VALUE 'elated'")
    case.on_source("INSERT INTO t VALUES (2, 'elated')")
    case.ends("t refuses an insert.*InvalidTextRepresentation", "ALTER TYPE … ADD VALUE")
    case.target.execute("ALTER TYPE mood ADD VALUE 'elated'")
    case.same("t")


def test_fewer_digits_on_the_target_alone(moving):
    """So it was planned: the target rounds, and nothing has changed since."""
    here = "CREATE TABLE t (id int PRIMARY KEY, v numeric(6, 1));"
    case = moving("CREATE TABLE t (id int PRIMARY KEY, v numeric);", here, rows="INSERT INTO t VALUES (1, 1.25);")
    case.on_source("INSERT INTO t VALUES (2, 1.25)")
    case.same("t", source_columns={"v": "round(s.v, 1)"})
