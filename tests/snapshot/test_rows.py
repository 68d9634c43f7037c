"""What arrives: one consistent state, whole tables, in pieces or not, and what is said about rows that do not fit."""

import pickle
import threading
import traceback

import psycopg
import pytest

import snapshot.export
import snapshot.pool
import snapshot.session
from replicator import failpoints
from replicator.errors import ReplicatorError, RowRejected, TransientError, UnmappedId
from snapshot.copy import CopyTask, copy_parts
from tests.conftest import ALL_PAIRS
from tests.oracle import assert_same_rows
from tests.snapshot.case import simple_case


def make(pair, source_sql, target_sql=None, **sections):
    case = simple_case(pair.source_dsn, pair.target_dsn, **sections)
    case.execute("source", source_sql)
    case.execute("target", target_sql or source_sql)
    return case


def assert_equal(case, *tables):
    with psycopg.connect(case.source_dsn) as source, psycopg.connect(case.target_dsn) as target:
        return [assert_same_rows(source, target, table) for table in tables]


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_a_table_copied_in_page_ranges_by_processes_is_whole(pair, monkeypatch):
    """With holes, updated rows and TOASTed values; parts of unequal content."""
    monkeypatch.setattr(snapshot.pool, "SMALL_BYTES", 0)
    case = make(
        pair,
        "CREATE TABLE big (id int PRIMARY KEY, v text, tags text[])",
        snapshot={"split_above": "64kB", "workers": 3},
    )
    case.execute(
        "source",
        "INSERT INTO big SELECT g, repeat(md5(g::text), 1 + g % 100), ARRAY[g::text, NULL]"
        " FROM generate_series(1, 6000) g",
    )
    case.execute("source", "DELETE FROM big WHERE id BETWEEN 2000 AND 3000")
    case.execute("source", "UPDATE big SET v = v || 'x' WHERE id % 3 = 0")
    case.execute("source", "ANALYZE big")
    tasks = []
    monkeypatch.setattr("snapshot.schedule.CopyTask", lambda *values: tasks.append(CopyTask(*values)) or tasks[-1])
    assert case.run()
    assert len(tasks) >= 3
    assert [part.pages.end for task in tasks for part in task.parts][-1] is None
    assert assert_equal(case, "big") == [4999]


def test_what_is_written_during_the_copy_does_not_show(pair):
    """The snapshot is exported before the writer begins; workers import it only then."""
    case = make(pair, "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)")
    case.execute("source", "INSERT INTO t SELECT generate_series(1, 100)")
    written = []

    def write(_):
        written.append(len(written))
        case.execute("source", "INSERT INTO t VALUES (%s)", 1000 + len(written))
        case.execute("source", "INSERT INTO u VALUES (%s)", 1000 + len(written))

    executor = Delayed(lambda: write(None))
    assert case.run(executor=executor)
    assert written
    assert case.value("source", "SELECT count(*) FROM u") == len(written)
    assert case.execute("target", "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)") == [(100, 0)]


class Delayed(snapshot.pool.ThreadPoolExecutor):
    """Does something before each task."""

    def __init__(self, before):
        super().__init__(2)
        self.before = before

    def submit(self, function, /, *args, **kwargs):
        self.before()
        return super().submit(function, *args, **kwargs)


def test_alter_and_truncate_wait_until_the_copy_is_over(pair):
    """They are not seen through a snapshot as rows are: a rewritten table looks empty to an older snapshot."""
    case = make(pair, "CREATE TABLE t (id int PRIMARY KEY, v int)")
    case.execute("source", "INSERT INTO t SELECT g, g FROM generate_series(1, 100) g")
    failures = []

    def alter():
        for statement in ("ALTER TABLE t ALTER v TYPE bigint", "TRUNCATE t"):
            try:
                case.execute("source", f"SET lock_timeout = '50ms'; {statement}")
            except psycopg.errors.LockNotAvailable:
                failures.append(statement)

    assert case.run(executor=Delayed(alter))
    assert len(failures) >= 2
    assert case.value("target", "SELECT count(*) FROM t") == 100


REPLACE = """
CREATE SCHEMA attic; ALTER TABLE t SET SCHEMA attic;
CREATE TABLE t (LIKE attic.t INCLUDING ALL); INSERT INTO t VALUES (1, 1);
ALTER PUBLICATION replicator SET TABLE t
"""


@pytest.mark.parametrize(
    "moment, change",
    [
        ("_lock", "ALTER TABLE t ALTER v TYPE bigint"),
        ("_lock", "TRUNCATE t"),
        ("create_slot", "ALTER TABLE t ADD w int"),
        ("create_slot", "ALTER TABLE t RENAME v TO w"),
        ("create_slot", REPLACE),
    ],
)
def test_a_table_altered_in_the_moment_of_the_snapshot_is_noticed(pair, moment, change):
    """Between planning and the consistent point the route goes stale; between that and the lock a rewritten
    table looks empty. The next try plans anew."""
    case = make(pair, "CREATE TABLE t (id int PRIMARY KEY, v int)")
    case.execute("source", "INSERT INTO t SELECT g, g FROM generate_series(1, 100) g")
    original = getattr(snapshot.export, moment)

    def change_first(*args, **options):
        case.execute("source", change)
        return original(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot.export, moment, change_first)
        with pytest.raises(TransientError, match="table t was altered"):
            case.run()
    assert case.phase() == "new"
    if "bigint" in change or " w" in change:
        case.execute("target", change)
    assert case.run()
    assert_equal(case, "t")


def test_rows_of_inheritance_children_belong_to_the_children(pair):
    case = make(pair, "CREATE TABLE base (id int PRIMARY KEY); CREATE TABLE derived (PRIMARY KEY (id)) INHERITS (base)")
    case.execute("source", "INSERT INTO base VALUES (1); INSERT INTO derived VALUES (2)")
    assert case.run()
    assert case.execute("target", "SELECT id FROM ONLY base") == [(1,)]
    assert case.execute("target", "SELECT id FROM derived") == [(2,)]


def test_a_partitioned_source_comes_through_its_root(pair):
    case = make(
        pair,
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (500); CREATE TABLE p2 PARTITION OF p DEFAULT",
        "CREATE TABLE p (id int PRIMARY KEY, v text)",
        snapshot={"split_above": "8kB"},
    )
    case.execute("source", "INSERT INTO p SELECT g, 'v' FROM generate_series(1, 1000) g; ANALYZE p")
    assert case.run()
    assert assert_equal(case, "p") == [1000]


def test_types_that_name_their_elements_by_oid_are_rewritten_in_processes_too(pair, monkeypatch):
    """Compiled rewrites cannot travel; the worker compiles its own."""
    monkeypatch.setattr(snapshot.pool, "SMALL_BYTES", 0)
    types = "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TYPE point3 AS (x int, label mood)"
    table = "CREATE TABLE t (id int PRIMARY KEY, moods mood[], at point3)"
    case = make(pair, f"{types}; {table}", f"CREATE TYPE spare AS ENUM ('a'); {types}; {table}")
    case.execute("source", "INSERT INTO t VALUES (1, '{glad,sad}', '(1,sad)'), (2, NULL, NULL)")
    assert case.run()
    assert assert_equal(case, "t") == [2]


def test_many_small_tables_share_a_few_sessions_and_transactions(pair, monkeypatch):
    """Mapped ones, empty ones and one with live indexes among them; a statistic for each."""
    names = [f"t{n:02}" for n in range(40)]
    case = make(
        pair,
        "".join(f"CREATE TABLE {name} (id int PRIMARY KEY, person uuid, v text UNIQUE);" for name in names),
        id_maps={"users": {"kind": "table", "columns": [f"{names[7]}.person", f"{names[30]}.person"]}},
    )
    for number, name in enumerate(names):
        case.execute(
            "source",
            f"INSERT INTO {name} SELECT g, md5((g % 3)::text)::uuid, '{name}' || g FROM generate_series(1, {number}) g",
        )
    case.execute("source", "ANALYZE")
    mapped_to = "00000000-0000-0000-0000-000000000001"
    opened, committed = [], []
    connect = snapshot.session.connect
    monkeypatch.setattr(
        "snapshot.session.connect", lambda *args, **options: opened.append(args[1]) or connect(*args, **options)
    )
    monkeypatch.setattr("snapshot.copy.failpoint", lambda name, _conn: committed.append(name))
    with case.sessions() as (writer, *_):
        writer.execute(
            "INSERT INTO replicator.id_map (map, source_id, target_id) VALUES ('users', md5('1')::uuid::text, %s)",
            [mapped_to],
        )
    assert case.run()
    assert opened.count("source") <= 4
    assert opened.count("target") <= 4
    assert committed.count("after_part") == 2  # 32 tables and 8
    assert (
        sum(assert_equal(case, *(name for name in names if name not in (names[7], names[30])))) == sum(range(40)) - 37
    )
    for name in (names[7], names[30]):
        case.execute("source", f"UPDATE {name} SET person = '{mapped_to}' WHERE id % 3 = 1")
    assert assert_equal(case, names[7], names[30]) == [7, 30]
    assert case.value("target", "SELECT count(*) FROM pg_class WHERE relname ~ '^t[0-9]+$' AND reltuples < 0") == 0
    leftover = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^replicator (copy|index|analyze)'"
    for side in ("source", "target"):
        wait_until(lambda side=side: case.value(side, f"{leftover} AND datname = current_database()") == 0)


def test_among_small_tables_the_one_whose_row_is_refused_is_named(pair):
    tables = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY);"
    case = make(
        pair,
        f"{tables} CREATE TABLE b (id int PRIMARY KEY, v text)",
        f"{tables} CREATE TABLE b (id int PRIMARY KEY, v varchar(3))",
    )
    case.execute("source", "INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, 'long'); INSERT INTO c VALUES (1)")
    with pytest.raises(RowRejected, match=r"^b\.v: "):
        case.run()
    assert case.execute("target", "SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM c)") == [(0, 0)]
    case.execute("source", "UPDATE b SET v = 'ok'")
    assert case.run()
    assert assert_equal(case, "a", "b", "c") == [1, 1, 1]


SECRET = "confidential value"


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
@pytest.mark.parametrize(
    "source_sql, target_sql, row, where",
    [
        ("v text", "v varchar(5)", f"'{SECRET}'", "t.v"),
        ("v text", "v text NOT NULL", "NULL", "t.v"),
        ("v text", "v text CHECK (v <> 'confidential value')", f"'{SECRET}'", "t (t_v_check)"),
        ("v mood", "v mood", f"'{SECRET}'", "t.v"),
        ("v numeric", "v numeric(4,2)", "1234567", "t.v"),
        ("v text", "v text UNIQUE", f"'{SECRET}'), (2, '{SECRET}'", "t (t_v_key)"),
    ],
    ids=["too_long", "null", "check", "enum_label", "precision", "unique"],
)
def test_a_row_that_does_not_fit_is_named_by_table_and_column_and_never_shown(
    pair, monkeypatch, processes, source_sql, target_sql, row, where
):
    monkeypatch.setattr(snapshot.pool, "SMALL_BYTES", 0 if processes else 1 << 40)
    case = make(
        pair,
        f"CREATE TYPE mood AS ENUM ('{SECRET}', 'other'); CREATE TABLE t (id int PRIMARY KEY, {source_sql})",
        f"CREATE TYPE mood AS ENUM ('other'); CREATE TABLE t (id int PRIMARY KEY, {target_sql})",
    )
    case.execute("source", f"INSERT INTO t VALUES (1, {row})")
    with pytest.raises(RowRejected) as caught:
        case.run()
    assert caught.value.message.startswith(f"{where}: ")
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert "1234567" not in "".join(traceback.format_exception(caught.value))
    assert case.table_states() == {"t": "copying"}
    assert case.value("target", "SELECT count(*) FROM t") == 0


def test_after_the_row_is_mended_the_snapshot_goes_on(pair):
    case = make(
        pair, "CREATE TABLE t (id int PRIMARY KEY, v text)", "CREATE TABLE t (id int PRIMARY KEY, v varchar(5))"
    )
    case.execute("source", "INSERT INTO t VALUES (1, 'much too long')")
    with pytest.raises(RowRejected):
        case.run()
    case.execute("source", "UPDATE t SET v = 'fits'")
    assert case.run()
    assert case.execute("target", "SELECT v FROM t") == [("fits",)]


def mapped(pair, on_unmapped):
    case = make(
        pair,
        "CREATE TABLE t (id int PRIMARY KEY, person uuid)",
        id_maps={"users": {"kind": "table", "columns": ["t.person"], "on_unmapped": on_unmapped}},
    )
    case.execute("source", "INSERT INTO t SELECT g, md5((g % 3)::text)::uuid FROM generate_series(1, 30) g")
    return case


def test_the_policy_stop_records_whom_to_look_for(pair):
    case = mapped(pair, "stop")
    with pytest.raises(UnmappedId, match=r"t\.person"):
        case.run()
    assert case.value("target", "SELECT count(*) FROM replicator.unmapped_id") == 1
    assert case.value("target", "SELECT count(*) FROM t") == 0


def test_parts_that_meet_the_same_unmapped_ids_do_not_lock_each_other_out(pair):
    """And each ID is counted once."""
    from replicator import metrics

    case = mapped(pair, "keep")
    case.execute("source", "INSERT INTO t SELECT g, md5((g % 400)::text)::uuid FROM generate_series(31, 20000) g")
    case.execute("source", "ANALYZE t")
    case.settings = case.settings.model_copy(
        update={"snapshot": case.settings.snapshot.model_copy(update={"split_above": 32 << 10})}
    )
    before = metrics.UNMAPPED_IDS.labels(map="users")._value.get()
    assert case.run()
    assert case.value("target", "SELECT count(*) FROM replicator.unmapped_id") == 400
    assert metrics.UNMAPPED_IDS.labels(map="users")._value.get() - before == 400


def test_a_copy_that_was_overtaken_writes_nothing(pair):
    """An orphan of a killed process wakes up after somebody else has emptied the table."""
    case = make(pair, "CREATE TABLE t (id int PRIMARY KEY)")
    case.execute("source", "INSERT INTO t SELECT generate_series(1, 100)")
    kept = []

    def keep(task):
        kept.append(pickle.loads(pickle.dumps(task)))
        raise TransientError("the process was lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snapshot.schedule.copy_parts", keep)
        with pytest.raises(TransientError):
            case.run()
    [task] = kept
    assert case.target_dsn not in repr(task), "a task that is printed shows no password"
    case.execute("target", "UPDATE replicator.table_state SET attempt = attempt + 1")
    with psycopg.connect(case.source_dsn) as conn:
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        name = conn.execute("SELECT pg_export_snapshot()").fetchone()[0]
        late = type(task)(**{field: getattr(task, field) for field in task.__slots__} | {"snapshot_name": name})
        with pytest.raises(TransientError, match="taken over"):
            copy_parts(late)
    assert case.value("target", "SELECT count(*) FROM t") == 0


def test_stop_ends_a_copy_in_progress_within_seconds_and_it_resumes(pair):
    """Also while the target blocks: a lock there holds up the copy, and with it everything else."""
    case = make(pair, "CREATE TABLE t (id int PRIMARY KEY)")
    case.execute("source", "INSERT INTO t SELECT generate_series(1, 100)")
    results = []
    with psycopg.connect(case.target_dsn) as blocker:
        blocker.execute("LOCK TABLE t IN SHARE MODE")
        runner = threading.Thread(target=lambda: results.append(case.run()))
        runner.start()
        wait_until(lambda: case.value("target", "SELECT count(*) FROM pg_locks WHERE NOT granted") > 0)
        case.stop.set()
        runner.join(10)
        assert not runner.is_alive()
    assert results == [False]
    assert case.phase() == "copying"
    case.stop.clear()
    assert case.run()
    assert case.value("target", "SELECT count(*) FROM t") == 100


def test_stop_ends_the_wait_for_transactions_before_the_slot_exists(pair):
    """CREATE_REPLICATION_SLOT waits for every writing transaction of the source."""
    case = make(pair, "CREATE TABLE t (id int PRIMARY KEY)")
    results = []
    with psycopg.connect(case.source_dsn) as writer:
        writer.execute("INSERT INTO t VALUES (1)")
        runner = threading.Thread(target=lambda: results.append(case.run()))
        runner.start()
        wait_until(
            lambda: case.value("source", "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^CREATE_REPLICATION'")
        )
        case.stop.set()
        runner.join(10)
        assert not runner.is_alive()
        assert results == [False]
        assert case.phase() == "new"
    case.stop.clear()
    assert case.run()
    assert case.value("target", "SELECT count(*) FROM t") == 1


def wait_until(condition, timeout_s=20.0):
    done = threading.Event()
    for _ in range(int(timeout_s / 0.02)):
        if condition():
            return
        done.wait(0.02)
    raise AssertionError("it never came to that")


def test_a_lost_worker_session_is_transient_and_the_rest_is_interrupted(pair):
    case = make(pair, "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)")
    case.execute("source", "INSERT INTO t SELECT generate_series(1, 100); INSERT INTO u SELECT generate_series(1, 9)")
    with psycopg.connect(case.target_dsn) as blocker:
        blocker.execute("LOCK TABLE t IN SHARE MODE")
        caught = []

        def run():
            try:
                case.run()
            except ReplicatorError as exc:
                caught.append(exc)

        runner = threading.Thread(target=run)
        runner.start()
        wait_until(lambda: case.value("target", "SELECT count(*) FROM pg_locks WHERE NOT granted") > 0)
        case.execute(
            "target",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'replicator copy%'"
            " AND datname = current_database()",
        )
        runner.join(10)
        assert not runner.is_alive()
    assert [type(exc) for exc in caught] == [TransientError]
    assert case.run()
    assert case.execute("target", "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)") == [(100, 9)]


@pytest.mark.parametrize("place, advanced", [("after_part", False), ("after_table_copied", True)])
def test_a_copied_table_is_progress_and_its_rows_alone_are_not(pair, place, advanced):
    """The service's pauses between attempts grow only while nothing gets done: a part is copied again."""
    case = make(pair, "CREATE TABLE t (id int PRIMARY KEY)")
    case.execute("source", "INSERT INTO t SELECT generate_series(1, 100)")
    failpoints.arm({failpoints.VARIABLE: f"{place}=lost"})
    try:
        with pytest.raises(TransientError) as lost:
            case.run()
    finally:
        failpoints.arm({})
    assert lost.value.advanced is advanced
    assert case.run()
    assert assert_equal(case, "t") == [100]
