"""The commands against real servers: exit codes, what stands on stdout, what never stands anywhere."""

import json
import time

import psycopg
import pytest
from psycopg import sql

from tests.cli.command import dsns, replicator, running
from tests.snapshot.case import freshtrack_case, slot_name

SCHEMA = """
    CREATE TABLE parent (id int PRIMARY KEY, name text NOT NULL);
    CREATE TABLE child (id int PRIMARY KEY, parent_id int REFERENCES parent (id));
    CREATE TABLE other (id int PRIMARY KEY);
"""
ROWS = "INSERT INTO parent SELECT i, 'p' || i FROM generate_series(1, 50) i; INSERT INTO child VALUES (1, 1), (2, 7)"


@pytest.fixture
def case(pair, tmp_path):
    """Both DSNs as options, and a slot of this database's own in the settings file of the directory."""
    for dsn in (pair.source_dsn, pair.target_dsn):
        execute(dsn, SCHEMA)
    execute(pair.source_dsn, ROWS)
    write_settings(pair, tmp_path)
    return pair


def write_settings(pair, tmp_path):
    (tmp_path / "replicator.toml").write_text(
        f'[source]\ndsn = "{pair.source_dsn}"\nslot = "{slot_name(pair.source_dsn)}"\n'
        f'[target]\ndsn = "{pair.target_dsn}"\n[metrics]\nlisten = ""\n'
    )


def execute(dsn, statement, *parameters):
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def password_of(dsn):
    return psycopg.conninfo.conninfo_to_dict(dsn)["password"]


def test_from_check_to_teardown(case, tmp_path):
    """The runbook in one go, with what every command says on the way."""
    outputs = []

    def step(*words, code=0):
        done = replicator(*words, cwd=tmp_path)
        outputs.append(done.stdout + done.stderr)
        assert done.returncode == code, done.stderr
        return done

    checked = json.loads(step("check", "--json").stdout)
    assert checked["ok"] is True
    assert {"name", "side", "status", "message", "remedy"} <= checked["checks"][0].keys()
    planned = json.loads(step("plan", "--json").stdout)
    assert planned["levels"] == [["other", "parent"], ["child"]]
    assert planned["source_objects"]["publication_sql"].startswith('CREATE PUBLICATION "replicator" FOR TABLE')

    assert json.loads(step("status", "--json").stdout)["phase"] == "new"
    assert "3 tables to copy" in step("snapshot", "--dry-run").stdout
    assert json.loads(step("status", "--json").stdout)["slot"] is None, "a dry run leaves no slot"
    assert "snapshot complete" in step("snapshot").stdout
    execute(case.source_dsn, "INSERT INTO other VALUES (1); UPDATE parent SET name = 'x' WHERE id = 1")

    waiting = step("status", "--json", code=1)
    assert "the service is not running" in json.loads(waiting.stdout)["problems"][0]
    assert step("run", "--until-caught-up").stdout == ""
    status = json.loads(step("status", "--json", code=1).stdout)
    assert status["phase"] in ("catching_up", "streaming")
    assert {table["name"]: (table["state"], table["rows_copied"]) for table in status["tables"]} == {
        "child": ("copied", 2),
        "other": ("copied", 0),
        "parent": ("copied", 50),
    }

    verified = json.loads(step("verify", "--json", "--report", "verified.json").stdout)
    assert verified["equal"] is True
    assert json.loads((tmp_path / "verified.json").read_text()) == verified
    execute(case.target_dsn, "UPDATE parent SET name = 'changed' WHERE id = 2")
    assert json.loads(step("verify", "--json", code=1).stdout)["equal"] is False
    assert json.loads(step("verify", "--json", "--table", "child").stdout)["equal"] is True
    step("verify", "--table", "nonsense", code=2)

    refused = step("cutover", "--yes", "--report", "cutover.json", code=1)
    assert "service" in refused.stderr
    assert json.loads((tmp_path / "cutover.json").read_text())["finalized"] is False

    removed = step("teardown", "--yes").stdout
    assert f"slot {slot_name(case.source_dsn)}" in removed
    assert "publication replicator" in removed
    assert "schema replicator" in removed
    assert "nothing left" in step("teardown", "--yes").stdout
    for dsn in (case.source_dsn, case.target_dsn):
        assert password_of(dsn) not in "".join(outputs)


def test_the_two_dsns_are_all_that_a_command_needs(case, tmp_path):
    (tmp_path / "replicator.toml").unlink()
    options = dsns(case.source_dsn, case.target_dsn)
    done = replicator("plan", "--json", *options, cwd=tmp_path)
    assert done.returncode == 0
    assert [table["name"] for table in json.loads(done.stdout)["tables"]] == ["other", "parent", "child"]
    before = replicator(*options, "plan", "--json", cwd=tmp_path)
    assert before.stdout == done.stdout


def test_a_wrong_password_is_exit_2_and_never_shown(case, tmp_path):
    planted = "planted-Pa55word"
    user = psycopg.conninfo.conninfo_to_dict(case.source_dsn)["user"]
    wrong = case.source_dsn.replace(password_of(case.source_dsn), planted)
    for command in (["plan"], ["snapshot"], ["run"], ["verify"], ["teardown", "--yes"], ["plan", "-v"]):
        done = replicator(*command, "--source", wrong, cwd=tmp_path)
        assert done.returncode == 2, command
        assert f'password authentication failed for user "{user}"' in done.stderr
        assert "PGPASSWORD" in done.stderr
        assert planted not in done.stdout + done.stderr
    checked = replicator("check", "--source", wrong, cwd=tmp_path)
    assert checked.returncode == 1
    assert "password authentication failed" in checked.stdout
    assert "skipped" in checked.stdout
    assert planted not in checked.stdout + checked.stderr


def test_a_source_that_cannot_be_had_leaves_the_status_readable(case, tmp_path):
    done = replicator("status", "--json", "--source", "host=127.0.0.1 port=1 user=x", cwd=tmp_path)
    assert done.returncode == 1
    status = json.loads(done.stdout)
    assert status["source_lsn"] is None
    assert any("the source does not answer" in problem for problem in status["problems"])


def test_what_cannot_be_replicated_is_exit_1_in_plan_and_check(case, tmp_path):
    execute(case.target_dsn, "DROP TABLE child; ALTER TABLE other ADD COLUMN needed int NOT NULL")
    planned = replicator("plan", cwd=tmp_path)
    assert planned.returncode == 1
    assert "there is no table child on the target" in planned.stdout
    document = json.loads(replicator("plan", "--json", cwd=tmp_path).stdout)
    assert document["ok"] is False
    assert {fault["table"] for fault in document["faults"]} == {"child", "other"}
    checked = replicator("check", "--json", cwd=tmp_path)
    assert checked.returncode == 1
    failed = [check for check in json.loads(checked.stdout)["checks"] if check["status"] == "fail"]
    assert {(check["name"], check["table"]) for check in failed} == {("routes", "child"), ("routes", "other")}
    assert replicator("snapshot", cwd=tmp_path).returncode == 3, "a run-time failure for those who went on"


def test_rows_of_somebody_else_are_refused_and_emptied_only_when_told_to(case, tmp_path):
    execute(case.target_dsn, "INSERT INTO other VALUES (77)")
    refused = replicator("snapshot", cwd=tmp_path)
    assert refused.returncode == 1
    assert "other" in refused.stderr
    dry = replicator("snapshot", "--dry-run", cwd=tmp_path)
    assert dry.returncode == 1
    assert "other — holds rows" in dry.stdout
    assert replicator("snapshot", "--truncate", cwd=tmp_path).returncode == 2
    assert execute(case.target_dsn, "SELECT id FROM other") == [(77,)]
    assert replicator("snapshot", "--truncate", "--yes", cwd=tmp_path).returncode == 0
    assert execute(case.target_dsn, "SELECT id FROM other") == []
    assert execute(case.target_dsn, "SELECT count(*) FROM parent") == [(50,)]


def test_a_snapshot_in_portions(case, tmp_path):
    part = replicator("snapshot", "--exclude", "child", cwd=tmp_path)
    assert part.returncode == 0
    assert "other tables are still to be copied" in part.stdout
    assert execute(case.target_dsn, "SELECT count(*) FROM child") == [(0,)]
    assert "1 tables to copy, 2 copied already" in replicator("snapshot", "--dry-run", cwd=tmp_path).stdout
    rest = replicator("snapshot", "--table", "child", "--workers", "1", cwd=tmp_path)
    assert rest.returncode == 0
    assert "snapshot complete" in rest.stdout
    assert execute(case.target_dsn, "SELECT count(*) FROM child") == [(2,)]
    assert replicator("snapshot", "--table", "nonsense", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("with_service", [True, False], ids=["beside the service", "without it"])
def test_a_table_is_copied_again(case, tmp_path, with_service):
    assert replicator("run", "--until-caught-up", cwd=tmp_path).returncode == 0
    execute(case.target_dsn, "DELETE FROM parent WHERE id = 50; UPDATE parent SET name = 'wrong' WHERE id = 3")
    if with_service:
        with running("run", cwd=tmp_path):
            wait_until_healthy(tmp_path)  # the phase is still that of the run before
            done = replicator("snapshot", "--table", "parent", cwd=tmp_path)
            assert "by the running service" in done.stdout
            execute(case.source_dsn, "INSERT INTO parent VALUES (51, 'later')")
            assert replicator("verify", cwd=tmp_path).returncode == 0
    else:
        done = replicator("snapshot", "--table", "parent", cwd=tmp_path)
        assert replicator("verify", cwd=tmp_path).returncode == 0
    assert done.returncode == 0
    assert execute(case.target_dsn, "SELECT name FROM parent WHERE id = 3") == [("p3",)]


def wait_for_phase(case, phase):
    deadline = time.monotonic() + 30
    while execute(case.target_dsn, "SELECT phase FROM replicator.checkpoint") != [(phase,)]:
        assert time.monotonic() < deadline, f"not {phase} after 30 s"
        time.sleep(0.1)


def test_beside_a_running_service(case, tmp_path):
    """Healthy status, a second service and a teardown refused, SIGTERM ends with 0, a cutover ends it too."""
    assert replicator("snapshot", cwd=tmp_path).returncode == 0
    with running("run", cwd=tmp_path) as service:
        wait_for_phase(case, "streaming")
        time.sleep(1.0)
        status = replicator("status", "--json", cwd=tmp_path)
        assert status.returncode == 0, status.stdout
        assert json.loads(status.stdout)["healthy"] is True
        assert json.loads(status.stdout)["slot"]["active"] is True
        people = replicator("status", cwd=tmp_path)
        assert "streaming" in people.stdout
        assert "parent" in people.stdout

        second = replicator("run", cwd=tmp_path)
        assert second.returncode == 3
        assert "another replicator is already running" in second.stderr
        refused = replicator("teardown", "--yes", cwd=tmp_path)
        assert refused.returncode == 1
        assert "nothing was removed" in refused.stderr
        assert replicator("cutover", "--dry-run", cwd=tmp_path).returncode == 0
        service.terminate()
        assert service.wait(10) == 0
    with running("run", cwd=tmp_path) as service:
        wait_until_healthy(tmp_path)  # the phase is still that of the service before
        done = replicator("cutover", "--yes", "--json", "--report", "report.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["finalized"] is True
        assert json.loads((tmp_path / "report.json").read_text()) == report
        assert service.wait(20) == 0
    try:
        over = replicator("status", "--json", cwd=tmp_path)
        assert over.returncode == 0
        document = json.loads(over.stdout)
        assert (document["phase"], document["lag_bytes"], document["lag_seconds"]) == ("cut_over", 0, 0.0)
        assert {step["state"] for step in document["cutover"]} == {"done"}
        assert replicator("cutover", "abort", cwd=tmp_path).returncode == 1
        torn = replicator("teardown", "--yes", cwd=tmp_path)
        assert torn.returncode == 0
        assert "kept the source's database setting default_transaction_read_only" in torn.stdout
    finally:
        reopen(case.source_dsn)


def wait_until_healthy(cwd):
    """Until a service streams: its lock is held and its slot is read."""
    deadline = time.monotonic() + 30
    while replicator("status", cwd=cwd).returncode != 0:
        assert time.monotonic() < deadline, "no service became healthy"
        time.sleep(0.2)


def reopen(dsn):
    """The test's own database may be dropped by sessions that write."""
    name = sql.Identifier(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
    with psycopg.connect(dsn, autocommit=True, options="-c default_transaction_read_only=off") as conn:
        conn.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))


def test_status_as_a_stream_of_documents(case, tmp_path):
    with running("status", "--watch", "--json", cwd=tmp_path) as process:
        assert process.stdout is not None
        text = ""
        while text.count('"healthy"') < 2:
            text += process.stdout.readline()
        process.send_signal(2)
        process.stdout.read()
        assert process.wait(10) == 0


def test_users_from_file_to_file(pair, tmp_path):
    case = freshtrack_case(pair.source_dsn, pair.target_dsn, tmp_path, 1_000)
    options = dsns(pair.source_dsn, pair.target_dsn)
    execute(pair.target_dsn, "DROP SCHEMA replicator CASCADE")

    empty = replicator("users", "export", "out.json", *options, cwd=tmp_path)
    assert empty.returncode == 1
    imported = replicator("users", "import", str(case.map_file), "--json", *options, cwd=tmp_path)
    assert imported.returncode == 0
    count = len(json.loads(case.map_file.read_text())["mappings"])
    assert json.loads(imported.stdout) == {"added": count, "changed": 0, "unchanged": 0}
    status = json.loads(replicator("users", "status", "--json", *options, cwd=tmp_path).stdout)
    [users] = [each for each in status["maps"] if each["name"] == "users"]
    assert (users["entries"], users["covered"], users["source_users"]) == (count, count, count + 2)
    assert replicator("users", "status", *options, cwd=tmp_path).returncode == 0

    assert replicator("users", "export", "out.json", *options, cwd=tmp_path).returncode == 0
    pairs = [
        {(m["supabaseUserId"], m["stackAuthUserId"]) for m in json.loads(file.read_text())["mappings"]}
        for file in (case.map_file, tmp_path / "out.json")
    ]
    assert pairs[0] == pairs[1]

    source_id, target_id = next(iter(pairs[0]))
    found = replicator("users", "lookup", target_id, *options, cwd=tmp_path)
    assert source_id in found.stdout
    assert replicator("users", "lookup", "nobody", *options, cwd=tmp_path).returncode == 1

    assert replicator("users", "purge", "--expired", *options, cwd=tmp_path).stdout == "0 entries removed\n"
    assert replicator("users", "purge", "--all", *options, cwd=tmp_path).returncode == 2
    assert replicator("users", "purge", "--all", "--yes", *options, cwd=tmp_path).stdout == f"{count} entries removed\n"

    (tmp_path / "dry.json").write_text(
        json.dumps({"mappings": [{"supabaseUserId": source_id, "stackAuthUserId": "dry-run-1", "email": "a@b.c"}]})
    )
    refused = replicator("users", "import", "dry.json", *options, cwd=tmp_path)
    assert refused.returncode == 1
    assert "mappings[0]" in refused.stderr
    assert "a@b.c" not in refused.stderr


def test_watching_goes_on_while_the_target_is_away(own_servers, tmp_path):
    write_settings(own_servers, tmp_path)
    with running("status", "--watch", "--json", cwd=tmp_path) as process:
        assert process.stdout is not None
        read_until(process.stdout, '"healthy": true')
        own_servers.target.stop()
        assert "cannot be read" in read_until(process.stdout, '"healthy": false', "}")
        own_servers.target.start_again()
        read_until(process.stdout, '"healthy": true')


def read_until(stream, *texts):
    seen = ""
    for text in texts:
        start = len(seen)
        while text not in seen[start:]:
            line = stream.readline()
            assert line, seen
            seen += line
    return seen
