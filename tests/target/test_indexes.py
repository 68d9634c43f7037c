import psycopg
import pytest

from replicator.errors import RowRejected
from replicator.target import indexes, state
from tests.conftest import ALL_MAJORS

TABLES = """
CREATE FUNCTION ours(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1';
CREATE TABLE t (id int PRIMARY KEY, a int UNIQUE, b text, c int, during int4range, EXCLUDE USING gist (during WITH &&));
CREATE INDEX plain ON t (b);
CREATE UNIQUE INDEX partial ON t (b) WHERE c > 0;
CREATE INDEX "Expression; odd" ON t (lower(b) DESC) INCLUDE (c) WITH (fillfactor = 70);
CREATE INDEX calls_ours ON t (ours(b));
CREATE INDEX described ON t (c);
COMMENT ON INDEX described IS 'kept';
CREATE UNIQUE INDEX referenced ON t (c);
CREATE TABLE other (c int REFERENCES t (c));

CREATE TABLE p (id int, day date, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM ('2024-02-01') TO ('2024-03-01') PARTITION BY LIST (id);
CREATE TABLE p_2_x PARTITION OF p_2 DEFAULT;
CREATE INDEX by_v ON p (v);
CREATE UNIQUE INDEX by_v_day ON p (v, day, id);
-- The name that PostgreSQL would make up for p_1's share of an index on p (day).
CREATE INDEX p_1_day_idx ON p_1 (day, id);
CREATE INDEX by_day ON p (day);
CREATE INDEX only_2 ON p_2 (id);
"""
ALL = """
SELECT CASE WHEN i.relispartition THEN '' ELSE i.relname::text END, x.indrelid::regclass::text,
       regexp_replace(pg_get_indexdef(i.oid), 'INDEX ("[^"]+"|\\S+) ON', 'INDEX ON'), x.indisvalid, i.relispartition
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
WHERE i.relnamespace = 'public'::regnamespace ORDER BY 1, 2, 3
"""


@pytest.fixture
def conn(database):
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(TABLES)
        conn.execute("SET search_path = ''")
        state.migrate(conn)
        yield conn


def names(found):
    return sorted(index.name for index in found)


def defer(conn, table):
    with conn.transaction():
        return indexes.defer(conn, ("public", table))


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_every_index_comes_back_as_it_was(conn):
    before = conn.execute(ALL).fetchall()
    dropped, kept = defer(conn, "t")
    assert names(dropped) == ["Expression; odd", "partial", "plain"]
    assert kept == []
    assert names(indexes.pending(conn)) == names(dropped)
    assert len(conn.execute(ALL).fetchall()) == len(before) - 3
    assert names(indexes.rebuild_missing(conn)) == names(dropped)
    assert conn.execute(ALL).fetchall() == before
    assert indexes.pending(conn) == []


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_a_partitioned_index_comes_back_on_every_partition(conn):
    """Also those that exist on one partition alone, whose names the children of others must not take."""
    before = conn.execute(ALL).fetchall()
    assert sum(child for *_, child in before) > 6
    dropped, _ = defer(conn, "p")
    assert names(dropped) == ["by_day", "by_v", "by_v_day", "only_2", "p_1_day_idx"]
    assert {index.table for index in dropped} == {("public", "p"), ("public", "p_1"), ("public", "p_2")}
    assert names(indexes.pending(conn, [("public", "p")])) == names(dropped)
    assert indexes.pending(conn, [("public", "t")]) == []
    indexes.rebuild_missing(conn, [("public", "p")])
    assert conn.execute(ALL).fetchall() == before


def test_a_crash_between_drop_and_commit_loses_nothing(conn):
    before = conn.execute(ALL).fetchall()
    with pytest.raises(ZeroDivisionError), conn.transaction():
        indexes.defer(conn, ("public", "t"))
        raise ZeroDivisionError
    assert conn.execute(ALL).fetchall() == before
    assert indexes.pending(conn) == []


def test_an_index_that_somebody_made_meanwhile_is_left_as_it_is(conn):
    defer(conn, "t")
    conn.execute("CREATE INDEX plain ON public.t (b, c)")
    indexes.rebuild_missing(conn)
    assert indexes.pending(conn) == []
    [(definition,)] = conn.execute("SELECT pg_get_indexdef('public.plain'::regclass)").fetchall()
    assert definition.endswith("(b, c)")


def test_deferring_again_after_an_interruption_forgets_nothing(conn):
    before = conn.execute(ALL).fetchall()
    defer(conn, "t")
    assert defer(conn, "t") == ([], [])
    indexes.rebuild(conn, next(index for index in indexes.pending(conn) if index.name == "plain"))
    assert names(defer(conn, "t")[0]) == ["plain"]
    indexes.rebuild_missing(conn)
    assert conn.execute(ALL).fetchall() == before


def test_duplicates_under_a_unique_index_are_told_without_their_values(conn):
    defer(conn, "t")
    conn.execute("INSERT INTO public.t (id, b, c) VALUES (1, 'confidential', 1), (2, 'confidential', 2)")
    with pytest.raises(RowRejected) as caught:
        indexes.rebuild_missing(conn)
    assert "partial" in caught.value.message
    assert "confidential" not in caught.value.message
    assert "partial" in names(indexes.pending(conn))


def test_indexes_of_another_role_stay(conn, database):
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("CREATE ROLE index_tester")
        try:
            other.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO index_tester")
            other.execute("GRANT ALL ON SCHEMA replicator TO index_tester")
            other.execute("GRANT ALL ON ALL TABLES IN SCHEMA replicator TO index_tester")
            conn.execute("SET ROLE index_tester")
            dropped, kept = defer(conn, "t")
            conn.execute("RESET ROLE")
            assert dropped == []
            assert sorted(kept) == ["Expression; odd", "partial", "plain"]
        finally:
            other.execute("DROP OWNED BY index_tester; DROP ROLE index_tester")


def test_indexes_stay_where_a_foreign_key_rests_on_one_partition(conn):
    conn.execute("SET search_path = public")
    conn.execute("CREATE TABLE refers (v text, day date, id int, FOREIGN KEY (v, day, id) REFERENCES p_1 (v, day, id))")
    conn.execute("SET search_path = ''")
    before = conn.execute(ALL).fetchall()
    dropped, kept = defer(conn, "p")
    assert dropped == []
    assert "by_v_day" in kept
    assert conn.execute(ALL).fetchall() == before
    assert indexes.pending(conn) == []


def test_the_memory_for_builds_is_raised_and_never_lowered(conn):
    def build_with(setting):
        conn.execute(f"SET maintenance_work_mem = '{setting}'")
        defer(conn, "t")
        indexes.rebuild_missing(conn)
        return conn.execute("SHOW maintenance_work_mem").fetchone()[0]

    assert build_with("8MB") == "256MB"
    assert build_with("1GB") == "1GB"
