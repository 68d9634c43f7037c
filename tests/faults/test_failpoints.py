"""A fault at every named place, under live writers: afterwards both sides are equal, and nobody is shut out.

The faults of one test follow each other on the same databases: what one leaves behind the next one meets.
"""

import json
import signal
import subprocess
import time
from pathlib import Path

import psycopg
import pytest

from replicator import failpoints
from tests.endurance.process import tail
from tests.faults.soak import load
from tests.faults.soak.failures import CUTOVER, SNAPSHOT, STREAM, WITHOUT_CONNECTION

# Long enough for a machine that does ten other things: a life of the service takes a second on a free one.
pytestmark = pytest.mark.timeout(1500)
WITHIN_S = 120.0
# Nobody writes to it, so that it always has the rows from which on indexes are dropped and rebuilt.
ARCHIVE = "CREATE TABLE archive (id int PRIMARY KEY, kind int); CREATE INDEX ON archive (kind);"
TABLES = (*load.TABLES, "archive")
BEFORE_FINALIZED = CUTOVER[: CUTOVER.index("after_hand_over")]


@pytest.fixture
def rig(make_plain):
    """Tables with and without keys, a foreign key, indexes that the snapshot defers; nothing runs yet."""
    rig = make_plain(load.SCHEMA + ARCHIVE)
    with psycopg.connect(rig.writers_dsn) as conn:
        load.fill(conn, wide_rows=200)
        conn.execute("INSERT INTO archive SELECT n, n % 9 FROM generate_series(1, 11000) AS n")
    with psycopg.connect(rig.writers_dsn, autocommit=True) as conn:
        conn.execute("ANALYZE")
    return rig


@pytest.fixture
def writers(rig):
    """Who writes all the time; stopped before the comparison."""
    ledger = load.Ledger(rig.writers_dsn, 1, rate=30, giant_rows=3_000).start()
    yield ledger
    ledger.stop()


def die(rig, fault, code=-signal.SIGKILL):
    """A life of the service that ends at the failpoint."""
    rig.service.start(failpoints=fault)
    ended = rig.service.wait_for_end(WITHIN_S)
    assert ended == code, f"{fault}: exit code {ended}\n{tail(rig.service.log)}"
    assert fired(rig, fault), f"{fault} did not come\n{tail(rig.service.log)}"


def fired(rig, fault):
    name, _, action = fault.partition("=")
    words = f"failpoint {name}: {action.partition('@')[0].partition(':')[0]}"
    return words in rig.service.log.read_text().rpartition("──── life")[2]


def live_through(rig, *faults):
    """One life that meets them all and goes on."""
    rig.service.start(failpoints=",".join(faults))
    for fault in faults:
        rig.wait_until(lambda fault=fault: fired(rig, fault), f"{fault} did not come")
    rig.wait_until_near()
    rig.service.terminate(15)


def finish(rig, writers):
    """Both sides are equal once the writers are silent."""
    if not rig.service.running:
        rig.service.start()
    writers.stop()
    rig.wait_until_drained()
    assert rig.assert_same(*TABLES) > 1_000
    assert writers.errors == []
    assert writers.commits > 0


# ── snapshot and stream ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "names",
    [
        ("after_slot", "after_table_entered", "after_part", "after_table_copied", "after_index_rebuild"),
        pytest.param(SNAPSHOT, marks=pytest.mark.soak, id="all"),
    ],
)
def test_kill_at_places_of_the_snapshot(rig, writers, names):
    for name in names:
        die(rig, f"{name}=kill")
    finish(rig, writers)


def test_kill_at_every_place_of_the_stream(rig, writers):
    for name in STREAM:
        die(rig, f"{name}=kill" + ("" if "checkpoint" in name else "@3"))
    finish(rig, writers)


def test_what_a_retry_cures_ends_no_service(rig, writers):
    live_through(
        rig, "after_slot=fail", "before_part=lost@2", "after_table_copied=lost", "after_snapshot_complete=lost"
    )
    live_through(
        rig, "after_lock=lost",
        "before_checkpoint_read=lost", "after_commit=lost@2", "before_commit=lost@7", "after_batch=lost@9",
        "after_batch=reject@11", "before_feedback=fail@6", "before_commit=hold:1.5@14",
    )  # fmt: skip
    assert rig.service.lives == 2
    finish(rig, writers)


def test_stopped_and_terminated_at_a_commit(rig, writers):
    """Standing still with everything sent and nothing committed; then SIGCONT, or death."""
    die(rig, "before_part=term@3", code=0)
    for place in ("before_commit@3", "after_commit@3"):
        name, _, nth = place.partition("@")
        rig.service.start(failpoints=f"{name}=stop@{nth}")
        wait_until_stopped(rig.service.pid)
        time.sleep(0.5)
        if name == "before_commit":
            rig.service.process.send_signal(signal.SIGCONT)
            rig.wait_until_near()
            rig.service.terminate(15)
        else:
            rig.service.kill()
    die(rig, "before_commit=term@3", code=0)
    die(rig, "after_commit=reject@3", code=3)
    finish(rig, writers)


def wait_until_stopped(pid):
    deadline = time.monotonic() + WITHIN_S
    while state_of(pid) != "T":
        assert time.monotonic() < deadline, "it does not stop"
        time.sleep(0.05)


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("action, code", [("kill", -9), ("term", 0), ("reject", None), ("fail", None), ("lost", None)])
def test_every_action_at_every_place(rig, writers, action, code):
    for name in (*SNAPSHOT, *STREAM):
        if action == "lost" and name in WITHOUT_CONNECTION:
            continue
        for nth in (1,) if name in SNAPSHOT or "checkpoint" in name else (1, 2, 5):
            fault = f"{name}={action}@{nth}"
            rig.service.start(failpoints=fault)
            rig.wait_until(
                lambda fault=fault: fired(rig, fault) or (name in SNAPSHOT and rig.phase() == "streaming"),  # noqa: B023
                f"{fault} did not come",
                runs=False,
            )
            if not fired(rig, fault):  # an earlier life has been past it, and ended well
                start_over(rig)
                rig.service.start(failpoints=fault)
                rig.wait_until(lambda fault=fault: fired(rig, fault), f"{fault} did not come", runs=False)
            if code is not None:
                assert rig.service.wait_for_end(WITHIN_S) == code
            elif action == "reject" and name not in ("before_batch", "after_batch", "before_commit"):  # tried again
                assert rig.service.wait_for_end(WITHIN_S) == 3
            else:
                rig.service.kill()
    finish(rig, writers)


def start_over(rig):
    rig.service.kill()
    rig.run("teardown", "--yes")
    rig.ask("target", f"TRUNCATE {', '.join(TABLES)}")


# ── cutover ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def streaming(rig, writers):
    rig.service.start()
    rig.wait_until_near()
    return rig


def cut_over(rig, fault):
    """Run it with a fault; → exit code, stderr."""
    rig.wait_until_near()
    file = rig.directory / "cutover.json"
    process = rig.popen("cutover", "--yes", "--report", str(file), failpoints=fault)
    try:
        _, err = process.communicate(timeout=WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()
        raise AssertionError(f"{fault}: the cutover does not end\n{err}") from None
    assert f"failpoint {fault.partition('=')[0]}" in err, f"{fault} did not come\n{err}"
    return process.returncode, err


def assert_old_sessions_write(session):
    """The lock went with the process that held it."""
    session.execute("SET lock_timeout = '20s'")
    session.execute("UPDATE accounts SET filler = 'written' WHERE id = 1")


def assert_open(rig):
    """The source is open to new sessions too."""
    with psycopg.connect(rig.writers_dsn, autocommit=True) as conn:
        assert_old_sessions_write(conn)


def kill_cutover_at(rig, names):
    with psycopg.connect(rig.writers_dsn, autocommit=True) as session:
        for name in names:
            code, err = cut_over(rig, f"{name}=kill")
            assert code == -signal.SIGKILL, f"{name}: {code}\n{err}"
            assert rig.phase() != "cut_over"
            if name == "before_hand_over":  # sessions that could write are ended by then, and new ones are read-only
                rig.run("cutover", "abort")
                assert_open(rig)
            else:
                assert_old_sessions_write(session)


def assert_finalized(rig, writers):
    report = rig.directory / "cutover.json"
    rig.run("cutover", "--yes", "--report", str(report))
    rig.cutover_done(report)
    assert json.loads(report.read_text())["writes_after_fence"] == 0
    writers.stop()
    assert rig.assert_same(*TABLES) > 1_000
    rig.assert_same_sequences()


def test_a_cutover_is_killed_on_its_way_and_then_behind_the_hand_over(streaming, writers):
    kill_cutover_at(
        streaming,
        ["before_step:freeze", "after_step:freeze", "after_step:drain", "after_step:verify", "before_hand_over"],
    )
    assert cut_over(streaming, "after_hand_over=kill")[0] == -signal.SIGKILL
    assert streaming.phase() == "cut_over"
    assert_finalized(streaming, writers)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("last", ["after_hand_over", "after_step:finalize"])
def test_a_cutover_is_killed_at_every_place(streaming, writers, last):
    kill_cutover_at(streaming, BEFORE_FINALIZED)
    assert cut_over(streaming, f"{last}=kill")[0] == -signal.SIGKILL
    assert_finalized(streaming, writers)


def test_a_cutover_that_fails_reopens_the_source(streaming, writers):
    """Whatever fails; a lost answer of the hand-over itself is looked up."""
    for fault in (
        "after_step:freeze=fail",
        "before_step:verify=reject",
        "after_step:drain=term",
        "before_hand_over=lost",
    ):
        code, err = cut_over(streaming, fault)
        assert code not in (0, 2), f"{fault}: {code}\n{err}"
        assert streaming.phase() == "streaming", err
        assert_open(streaming)
    code, err = cut_over(streaming, "after_hand_over=lost")
    assert code == 0, err
    assert_finalized(streaming, writers)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("action", ["fail", "reject", "term"])
def test_a_cutover_that_fails_anywhere_reopens_the_source(streaming, writers, action):
    for name in BEFORE_FINALIZED:
        if action == "term" and name in ("before_step:finalize", "before_hand_over"):
            continue  # too late for signals: it is finalized
        code, err = cut_over(streaming, f"{name}={action}")
        assert code not in (0, 2), f"{name}: {code}\n{err}"
        assert streaming.phase() == "streaming", err
        assert_open(streaming)
    cut_over(streaming, f"after_step:finalize={action}")
    assert_finalized(streaming, writers)


def test_the_places_are_those_of_the_module():
    assert (*SNAPSHOT, *STREAM, *CUTOVER) == failpoints.NAMES
