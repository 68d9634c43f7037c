"""`quarantine list`, `retry` and `drop` beside a service, and a service that is killed at bad moments."""

import json
import signal
import time

import psycopg
import pytest

from tests.cli.command import replicator, running
from tests.oracle import assert_same_rows
from tests.snapshot.case import slot_name

SECRET = "7654321"  # a value of a row that is no key


@pytest.fixture
def case(pair, tmp_path):
    """Streaming is prepared: tables copied, the target narrower than the source, refused rows set aside."""
    (tmp_path / "replicator.toml").write_text(
        f'[source]\ndsn = "{pair.source_dsn}"\nslot = "{slot_name(pair.source_dsn)}"\n'
        f'[target]\ndsn = "{pair.target_dsn}"\n[metrics]\nlisten = ""\n[stream]\non_rejected_row = "quarantine"\n'
    )
    for dsn in (pair.source_dsn, pair.target_dsn):
        execute(dsn, "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE u (a text, b int, PRIMARY KEY (a, b))")
    execute(pair.source_dsn, "INSERT INTO t SELECT i, i FROM generate_series(1, 20) i")
    assert replicator("snapshot", cwd=tmp_path).returncode == 0
    execute(pair.target_dsn, "ALTER TABLE t ADD CONSTRAINT low CHECK (v < 100); ALTER TABLE u ADD CHECK (b < 100)")
    return pair


def execute(dsn, statement):
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(statement)
        return cursor.fetchall() if cursor.description else []


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def listed(tmp_path):
    done = replicator("quarantine", "list", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["changes"]


def held(case):
    return execute(case.target_dsn, "SELECT count(*) FROM replicator.quarantine")[0][0]


def same(case, *tables):
    with psycopg.connect(case.source_dsn) as source, psycopg.connect(case.target_dsn) as target:
        for table in tables:
            assert_same_rows(source, target, table)


def test_from_a_refused_row_to_an_empty_quarantine(case, tmp_path):
    log = tmp_path / "running.log"
    with running("run", cwd=tmp_path):
        execute(case.source_dsn, f"INSERT INTO t VALUES (30, {SECRET}), (31, 1), (32, {SECRET}); "
                                 "INSERT INTO u VALUES ('x', 500)")  # fmt: skip
        wait_until(lambda: held(case) == 3)
        execute(case.source_dsn, "UPDATE t SET v = v + 1 WHERE id = 30")
        wait_until(lambda: held(case) == 4)

        first, second, third, fourth = listed(tmp_path)
        assert (first["table"], first["key"], first["op"], first["attempts"]) == ("t", {"id": "30"}, "insert", 1)
        assert first["error"] == "CheckViolation 23514 (low)"
        assert (second["key"], third["key"]) == ({"id": "32"}, {"a": "x", "b": "500"})
        assert (fourth["op"], fourth["error"], fourth["waiting_behind"]) == ("update", None, first["id"])
        people = replicator("quarantine", "list", cwd=tmp_path).stdout
        assert "CheckViolation 23514 (low)" in people
        assert f"waits behind {first['id']}" in people
        assert "3 changes were refused, 1 wait behind them" in people
        assert SECRET not in people
        only = replicator("quarantine", "list", "--table", "u", "--json", cwd=tmp_path)
        assert [each["id"] for each in json.loads(only.stdout)["changes"]] == [third["id"]]

        status = replicator("status", "--json", cwd=tmp_path)
        assert status.returncode == 1
        assert json.loads(status.stdout)["quarantined_rows"] == 4
        assert any("4 changes are in quarantine" in problem for problem in json.loads(status.stdout)["problems"])

        again = replicator("quarantine", "retry", cwd=tmp_path)
        assert (again.returncode, again.stdout) == (1, "0 changes applied, 4 left\n")
        assert "quarantine list" in again.stderr
        assert [each["attempts"] for each in listed(tmp_path)] == [2, 2, 2, 0]

        execute(case.target_dsn, "ALTER TABLE t DROP CONSTRAINT low")
        some = replicator("quarantine", "retry", str(second["id"]), cwd=tmp_path)
        assert (some.returncode, some.stdout) == (0, "1 changes applied, 0 left\n")
        assert replicator("quarantine", "retry", "999", cwd=tmp_path).returncode == 1
        rest = replicator("quarantine", "retry", "--table", "t", cwd=tmp_path)
        assert (rest.returncode, rest.stdout) == (0, "2 changes applied, 0 left\n")
        same(case, "t")

        assert replicator("quarantine", "drop", cwd=tmp_path).returncode == 2
        asked = replicator("quarantine", "drop", "--all", cwd=tmp_path)
        assert asked.returncode == 2
        assert "--yes" in asked.stderr
        dropped = replicator("quarantine", "drop", "--all", "--yes", cwd=tmp_path)
        assert dropped.returncode == 0
        assert "1 changes dropped" in dropped.stdout
        assert listed(tmp_path) == []
        assert replicator("quarantine", "retry", cwd=tmp_path).stdout == "nothing is in quarantine\n"
        different = replicator("verify", "--json", cwd=tmp_path)
        assert different.returncode == 1
        assert [table["name"] for table in json.loads(different.stdout)["tables"] if not table["equal"]] == ["u"]
    assert SECRET not in log.read_text()
    assert "CheckViolation 23514 (low)" in log.read_text()


def test_without_a_service_a_retry_is_left_to_the_next_start(case, tmp_path):
    execute(case.source_dsn, "INSERT INTO t VALUES (30, 500)")
    assert replicator("run", "--until-caught-up", cwd=tmp_path).returncode == 0
    execute(case.target_dsn, "ALTER TABLE t DROP CONSTRAINT low")
    done = replicator("quarantine", "retry", cwd=tmp_path)
    assert done.returncode == 1
    assert "the service is not running: it tries 1 changes again when it starts" in done.stderr
    with running("run", cwd=tmp_path):
        wait_until(lambda: held(case) == 0)
    same(case, "t")


def test_commands_before_anything_was_replicated(pair, tmp_path):
    for words in (["list"], ["retry"], ["drop", "--all", "--yes"]):
        done = replicator("quarantine", *words, "--target", pair.target_dsn, cwd=tmp_path)
        assert done.returncode == 1
        assert "nothing has been replicated" in done.stderr


# The first commits are those of the start: IDs that are mapped anew, the position. Behind them come the changes, or,
# at a start with a retry asked for, what the quarantine gives back.
PLACES = ["before_batch=kill@2", "before_commit=kill@3", "after_commit=kill@3"]


def test_killed_again_and_again_nothing_is_lost_and_nothing_comes_twice(case, tmp_path):
    """Around the transactions that set changes aside, and around the one that brings them back."""

    def run_and_die(place):
        done = replicator("run", "--until-caught-up", cwd=tmp_path, REPLICATOR_FAILPOINTS=place)
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr
        return done.returncode != 0

    deaths = 0
    execute(case.source_dsn, "INSERT INTO t SELECT i, CASE WHEN i % 3 = 0 THEN 500 ELSE 1 END"
                             " FROM generate_series(100, 130) i")  # fmt: skip
    for place in PLACES:
        execute(case.source_dsn, "UPDATE t SET v = v + 1 WHERE id % 2 = 0 OR id = 111")
        deaths += run_and_die(place)
    assert deaths >= 2
    assert replicator("run", "--until-caught-up", cwd=tmp_path).returncode == 0
    refused = execute(case.source_dsn, "SELECT id::text FROM t WHERE v >= 100")
    assert execute(case.target_dsn, "SELECT DISTINCT key[1] FROM replicator.quarantine ORDER BY 1") == sorted(refused)
    assert execute(case.target_dsn, "SELECT count(*) FROM replicator.quarantine WHERE key[1] = '111'") == [(4,)]
    execute(
        case.target_dsn, "ALTER TABLE t DROP CONSTRAINT low; UPDATE replicator.quarantine SET retry_requested = true"
    )
    for place in PLACES[1:]:
        run_and_die(place)
    assert replicator("run", "--until-caught-up", cwd=tmp_path).returncode == 0
    assert held(case) == 0
    same(case, "t")
