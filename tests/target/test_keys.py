"""Primary keys and unique constraints: dropped and rebuilt like indexes, as they were, or left alone."""

import psycopg
import pytest

from replicator.errors import RowRejected
from replicator.target import indexes, state
from tests.conftest import ALL_MAJORS

PLAIN = """
CREATE TABLE t (
    id int, a int, b text NOT NULL, c int, "Odd; name" int,
    CONSTRAINT t_pkey PRIMARY KEY (id) INCLUDE (c),
    CONSTRAINT pair UNIQUE (b, a) DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT "odd; key" UNIQUE ("Odd; name") DEFERRABLE
);
CREATE INDEX plain ON t (c);
CREATE TABLE parent (id int {not_null});
CREATE TABLE child () INHERITS (parent);
ALTER TABLE ONLY parent ADD PRIMARY KEY (id);
ALTER TABLE ONLY child ADD CONSTRAINT own UNIQUE (id);
CREATE TABLE named (id int CONSTRAINT odd_not_null NOT NULL, v int CONSTRAINT v_not_null NOT NULL UNIQUE);
ALTER TABLE named ADD PRIMARY KEY (id);
"""
PARTITIONED = """
CREATE TABLE p (
    id int, day date, v text, w int, PRIMARY KEY (id, day), UNIQUE (day, v, id) INCLUDE (w)
) PARTITION BY RANGE (day);
CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM ('2024-02-01') TO ('2024-03-01') PARTITION BY LIST (id);
CREATE TABLE p_2_x PARTITION OF p_2 DEFAULT;
ALTER TABLE p_1 ADD CONSTRAINT only_1 UNIQUE (id);
CREATE INDEX by_v ON p (v);
"""
# Keys that must stay.
KEPT = """
CREATE TABLE referenced (id int PRIMARY KEY);
CREATE TABLE refers (id int REFERENCES referenced);
CREATE TABLE itself (id int PRIMARY KEY, up int REFERENCES itself);
CREATE TABLE identity (id int PRIMARY KEY);
ALTER TABLE identity REPLICA IDENTITY USING INDEX identity_pkey;
CREATE TABLE clustered (id int PRIMARY KEY);
ALTER TABLE clustered CLUSTER ON clustered_pkey;
CREATE TABLE stored (id int PRIMARY KEY WITH (fillfactor = 70));
CREATE TABLE commented (id int PRIMARY KEY);
COMMENT ON CONSTRAINT commented_pkey ON commented IS 'kept';
CREATE TABLE index_commented (id int UNIQUE);
COMMENT ON INDEX index_commented_id_key IS 'kept';
CREATE TABLE viewed (id int PRIMARY KEY, v int);
CREATE VIEW view AS SELECT id, v FROM viewed GROUP BY id;
CREATE TABLE called (id int PRIMARY KEY, v int);
CREATE FUNCTION calls() RETURNS SETOF int BEGIN ATOMIC SELECT v FROM called GROUP BY id; END;
CREATE TABLE excluding (during int4range, EXCLUDE USING gist (during WITH &&));
CREATE TABLE extended (id int PRIMARY KEY);
ALTER INDEX extended_pkey DEPENDS ON EXTENSION plpgsql;
CREATE TABLE part (id int, PRIMARY KEY (id)) PARTITION BY LIST (id);
CREATE TABLE part_1 PARTITION OF part DEFAULT;
CREATE TABLE refers_part (id int REFERENCES part_1);
CREATE TABLE whole (id int, PRIMARY KEY (id)) PARTITION BY LIST (id);
CREATE TABLE whole_1 PARTITION OF whole DEFAULT;
CREATE TABLE refers_whole (id int REFERENCES whole);
CREATE TABLE share_named (id int, PRIMARY KEY (id)) PARTITION BY LIST (id);
CREATE TABLE share_1 (id int, CONSTRAINT my_own PRIMARY KEY (id));
ALTER TABLE share_named ATTACH PARTITION share_1 DEFAULT;
CREATE TABLE share_commented (id int UNIQUE) PARTITION BY LIST (id);
CREATE TABLE sc_1 PARTITION OF share_commented DEFAULT;
COMMENT ON INDEX sc_1_id_key IS 'kept';
CREATE TABLE invalid (id int NOT NULL) PARTITION BY LIST (id);
CREATE TABLE inv_1 PARTITION OF invalid DEFAULT;
ALTER TABLE ONLY invalid ADD PRIMARY KEY (id);
CREATE TABLE twice (id int PRIMARY KEY) PARTITION BY LIST (id);
CREATE TABLE twice_1 PARTITION OF twice DEFAULT;
ALTER TABLE twice_1 ADD CONSTRAINT again UNIQUE (id);
COMMENT ON CONSTRAINT again ON twice_1 IS 'kept';
"""
KEPT_SINCE_18 = """
CREATE TABLE rooms (room int4range, during int4range, PRIMARY KEY (room, during WITHOUT OVERLAPS));
CREATE TABLE no_inherit (id int PRIMARY KEY);
ALTER TABLE no_inherit ALTER CONSTRAINT no_inherit_id_not_null NO INHERIT;
"""
# All that could differ afterwards: constraints, the indexes of keys, columns, tables.
CATALOG = """
SELECT 'constraint', c.conrelid::regclass::text, c.conname::text, concat_ws(' ', c.contype, c.condeferrable,
    c.condeferred, c.convalidated, c.conislocal, c.coninhcount, c.connoinherit, c.conkey, p.conname,
    c.conindid::regclass, pg_get_constraintdef(c.oid))
FROM pg_constraint c LEFT JOIN pg_constraint p ON p.oid = c.conparentid
WHERE c.connamespace = 'public'::regnamespace
UNION ALL
SELECT 'index', x.indrelid::regclass::text, i.relname::text, concat_ws(' ', pg_get_indexdef(i.oid), i.relispartition,
    i.relkind, i.reloptions, i.relowner, x.indisprimary, x.indisunique, x.indisvalid, x.indimmediate, x.indisclustered,
    x.indisreplident, (SELECT inhparent::regclass FROM pg_inherits WHERE inhrelid = i.oid))
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE i.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'column', c.oid::regclass::text, a.attname::text, concat_ws(' ', a.attnotnull, a.attislocal, a.attinhcount)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0
UNION ALL
SELECT 'table', c.oid::regclass::text, '', concat_ws(' ', c.relreplident, c.relfilenode)
FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
ORDER BY 1, 2, 3, 4
"""


@pytest.fixture
def conn(database):
    with psycopg.connect(database, autocommit=True) as conn:
        state.migrate(conn)
        yield conn


def make(conn, ddl):
    conn.execute("SET search_path = public")
    # Before 18, children may do without the NOT NULL of their parent's key.
    conn.execute(ddl.replace("{not_null}", "NOT NULL" if conn.info.server_version >= 180000 else ""))
    conn.execute("SET search_path = ''")


def defer(conn, table, **options):
    with conn.transaction():
        return indexes.defer(conn, ("public", table), with_keys=True, **options)


def names(found):
    return sorted(index.name for index in found)


def catalog(conn):
    return conn.execute(CATALOG).fetchall()


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_keys_come_back_as_they_were(conn):
    """NOT NULL included, which 18 keeps as constraints with names, and which children by inheritance may lack."""
    make(conn, PLAIN)
    if conn.info.server_version >= 150000:
        make(conn, "CREATE TABLE nulls (v int, w int, UNIQUE NULLS NOT DISTINCT (v, w))")
    before = catalog(conn)
    dropped = {table: names(defer(conn, table)[0]) for table in ("t", "parent", "child", "named")}
    assert dropped == {"t": ["odd; key", "pair", "plain", "t_pkey"], "parent": ["parent_pkey"], "child": ["own"],
                       "named": ["named_pkey", "named_v_key"]}  # fmt: skip
    if conn.info.server_version >= 150000:
        assert names(defer(conn, "nulls")[0]) == ["nulls_v_w_key"]
    assert conn.execute("SELECT count(*) FROM pg_index WHERE indrelid = 'public.t'::regclass").fetchall() == [(0,)]
    indexes.rebuild_missing(conn)
    assert catalog(conn) == before
    assert indexes.pending(conn) == []


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_keys_of_a_partitioned_table_come_back_on_every_partition(conn):
    make(conn, PARTITIONED)
    before = catalog(conn)
    dropped, _ = defer(conn, "p")
    assert names(dropped) == ["by_v", "only_1", "p_day_v_id_w_key", "p_pkey"]
    assert names(indexes.pending(conn, [("public", "p")])) == names(dropped)
    assert [row for row in catalog(conn) if row[0] == "index"] == []
    indexes.rebuild_missing(conn)
    assert catalog(conn) == before


@pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)
def test_what_rests_on_a_key_or_would_be_lost_with_it_keeps_it(conn):
    """The plain indexes of such a table go all the same."""
    make(conn, KEPT + (KEPT_SINCE_18 if conn.info.server_version >= 180000 else ""))
    tables = [name for (name,) in conn.execute("SELECT relname FROM pg_class WHERE relkind IN ('r', 'p')"
              " AND relnamespace = 'public'::regnamespace AND NOT relispartition")]  # fmt: skip
    before = catalog(conn)
    for table in tables:
        conn.execute(f"CREATE INDEX ON public.{table} ({'during' if table in ('excluding', 'rooms') else 'id'})")
        assert [index.is_key for index in defer(conn, table)[0]] == [False]
    assert catalog(conn) == before
    assert {index.is_key for index in indexes.pending(conn)} == {False}


def test_a_key_in_a_tablespace_stays(conn):
    conn.execute("SET allow_in_place_tablespaces = on")
    space = conn.info.dbname
    conn.execute(f"CREATE TABLESPACE {space} LOCATION ''")
    try:
        make(conn, f"CREATE TABLE spaced (id int PRIMARY KEY USING INDEX TABLESPACE {space})")
        assert defer(conn, "spaced") == ([], [])
        # What the role's default is does not matter for those that are rebuilt.
        make(conn, "CREATE TABLE t (id int PRIMARY KEY, a int); CREATE INDEX i ON t (a)")
        assert names(defer(conn, "t")[0]) == ["i", "t_pkey"]
        conn.execute(f"SET default_tablespace = {space}")
        indexes.rebuild_missing(conn)
        conn.execute("RESET default_tablespace")
        assert conn.execute(
            "SELECT reltablespace::int FROM pg_class WHERE oid IN ('public.i'::regclass, 'public.t_pkey'::regclass)"
        ).fetchall() == [(0,), (0,)]
    finally:
        conn.execute("DROP TABLE IF EXISTS public.spaced, public.t")
        conn.execute(f"DROP TABLESPACE {space}")


def test_keys_stay_unless_they_are_asked_for(conn):
    make(conn, PLAIN)
    with conn.transaction():
        dropped, kept = indexes.defer(conn, ("public", "t"))
    assert (names(dropped), kept) == (["plain"], [])


def test_keys_of_another_role_stay(conn):
    make(conn, PLAIN)
    conn.execute("CREATE ROLE key_tester")
    try:
        conn.execute("GRANT ALL ON SCHEMA replicator TO key_tester")
        conn.execute("GRANT ALL ON ALL TABLES IN SCHEMA public, replicator TO key_tester")
        conn.execute("SET ROLE key_tester")
        dropped, kept = defer(conn, "t")
        conn.execute("RESET ROLE")
        assert (dropped, sorted(kept)) == ([], ["odd; key", "pair", "plain", "t_pkey"])
    finally:
        conn.execute("RESET ROLE; DROP OWNED BY key_tester; DROP ROLE key_tester")


def test_a_key_that_was_built_by_another_task_is_left_as_it_is(conn):
    """A task may be given out twice."""
    make(conn, PLAIN)
    before = catalog(conn)
    defer(conn, "t")
    missing = indexes.pending(conn)
    for index in (*missing, *missing):
        indexes.rebuild(conn, index)
    assert catalog(conn) == before


def test_rows_that_violate_a_key_are_told_without_their_values(conn):
    make(conn, PLAIN)
    defer(conn, "t")
    conn.execute("INSERT INTO public.t (id, a, b) VALUES (1, 1, 'confidential'), (2, 1, 'confidential')")
    with pytest.raises(RowRejected) as caught:
        indexes.rebuild_missing(conn)
    assert caught.value.message == "t: its rows violate the constraint pair, which cannot be rebuilt"
    assert "copy the table again" in str(caught.value.hint)
    assert "pair" in names(indexes.pending(conn))
