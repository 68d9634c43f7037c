"""What the catalogs say of tables, columns, types and keys."""

from __future__ import annotations

import pytest

from replicator.postgres.catalog import list_tables, load_tables, server_identity
from replicator.postgres.connection import connect
from tests.conftest import ALL_MAJORS

DDL = """
CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ('b', 'a'); ALTER TYPE app.mood ADD VALUE 'first' BEFORE 'b';
CREATE TYPE pair AS (n int, gone int, m app.mood[]); ALTER TYPE pair DROP ATTRIBUTE gone;
CREATE DOMAIN few AS int[] CHECK (cardinality(VALUE) < 3);
CREATE TABLE parent (b int, dropped int, a int, PRIMARY KEY (a, b) INCLUDE (dropped));
ALTER TABLE parent DROP COLUMN dropped CASCADE; ALTER TABLE parent ADD PRIMARY KEY (a, b);
CREATE TABLE child (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code varchar(9) NOT NULL DEFAULT 'x', mood app.mood, p pair, f few,
    twice int GENERATED ALWAYS AS (pb * 2) STORED, pb int, pa int, rights aclitem, at timestamptz(3),
    FOREIGN KEY (pa, pb) REFERENCES parent (a, b) ON DELETE SET NULL ON UPDATE CASCADE, UNIQUE (code, id)
);
ALTER TABLE child REPLICA IDENTITY USING INDEX child_code_id_key; ALTER TABLE child ENABLE ROW LEVEL SECURITY;
CREATE TABLE log (at date) PARTITION BY RANGE (at);
CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE UNLOGGED TABLE scratch (id int); CREATE VIEW seen AS SELECT 1; CREATE TABLE app.other (id int);
"""


@pytest.fixture
def conn(database):
    with connect(database, "source", purpose="test") as conn:
        conn.execute("SET search_path = public")
        conn.execute(DDL)
        conn.execute("SET search_path = ''")
        yield conn


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_tables(conn):
    names = list_tables(conn)
    assert names == [("public", "child"), ("public", "log"), ("public", "parent")]
    tables = load_tables(conn, [*names, ("app", "other"), ("public", "log_1"), ("public", "scratch"), ("no", "where")])
    assert sorted(tables) == sorted([*names, ("app", "other")])
    child, parent, log = (tables["public", name] for name in ("child", "parent", "log"))
    assert (parent.primary_key, [c.name for c in parent.columns]) == (("a", "b"), ["b", "a"])
    assert (child.primary_key, child.key, child.row_security) == (("id",), ("code", "id"), True)
    [key] = child.foreign_keys
    assert (key.columns, key.references, key.ref_columns, key.on_delete, key.on_update) == (
        ("pa", "pb"), ("public", "parent"), ("a", "b"), "n", "c"
    )  # fmt: skip
    assert (log.kind, child.kind, log.key) == ("p", "r", ())
    assert server_identity(conn)[0].isdigit()


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_columns_and_types(conn):
    columns = load_tables(conn, [("public", "child")])["public", "child"].by_name
    assert (columns["id"].identity, columns["id"].not_null) == ("a", True)
    assert (columns["code"].type_sql, columns["code"].default) == ("character varying(9)", "'x'::character varying")
    assert [name for name, c in columns.items() if c.generated] == ["twice"]
    mood, pair, few = columns["mood"].type, columns["p"].type, columns["f"].type
    assert (mood.name, mood.kind, mood.labels) == ("app.mood", "e", ("first", "b", "a"))
    assert [(name, type_.name) for name, type_ in pair.attributes] == [("n", "integer"), ("m", "app.mood[]")]
    assert pair.attributes[1][1].element == mood
    assert mood.array_oid == pair.attributes[1][1].oid
    assert few.kind == "d"
    assert few.base is not None
    assert few.base.element == columns["pb"].type
    assert not columns["rights"].type.has_binary
    assert columns["at"].type.has_binary
