"""Whole cutovers against the real service: to the end, undone at every step, interrupted, resumed, aborted."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from replicator.cutover import CutoverRefused, abort
from replicator.cutover.transitions import ORDER
from replicator.errors import Refused, StateError
from tests.cli.command import replicator
from tests.conftest import ALL_PAIRS
from tests.cutover.conftest import Replication, at, read_only_setting, wait_until

AFTER_FREEZE = [step.value for step in ORDER[1:]]


class Writer(threading.Thread):
    """A client that writes order after order, and connects again when it is thrown out."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.dsn, self.stopped = dsn, threading.Event()
        self.written, self.refusals = 0, set[str]()

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                with psycopg.connect(self.dsn, autocommit=True) as conn:
                    while not self.stopped.is_set():
                        conn.execute("INSERT INTO orders (customer_id, note) VALUES (1, 'live')")
                        self.written += 1
            except psycopg.Error as exc:
                self.refusals.add(type(exc).__name__)
                self.stopped.wait(0.05)

    def stop(self) -> None:
        self.stopped.set()
        self.join(20)


@pytest.mark.parametrize("pair", ALL_PAIRS, indirect=True)
def test_cutover_under_load_hands_over_every_row_and_closes_the_source(replication: Replication):
    """The clients write until they are stopped; what they were told is written is on the target, and nothing else."""
    writers = [Writer(replication.pair.source_dsn) for _ in range(2)]
    for writer in writers:
        writer.start()
    wait_until(lambda: all(writer.written > 20 for writer in writers))
    result = replicator(
        "cutover", "--yes", "--json", "--report", "report.json", cwd=replication.directory, **replication.variables
    )
    for writer in writers:
        writer.stop()
    assert result.returncode == 0, result.stderr
    report = json.loads((replication.directory / "report.json").read_text())
    assert json.loads(result.stdout) == report
    assert report["finalized"] is True
    assert [(step["name"], step["state"]) for step in report["steps"]] == [(step.value, "done") for step in ORDER]
    assert 0 < report["write_downtime_seconds"] < 30
    assert report["verification"]["equal"] is True
    assert report["writes_after_fence"] == 0
    assert report["warnings"] == []
    assert any("slot" in kept for kept in report["kept"])
    replication.assert_same()
    [(live,)] = replication.target.execute("SELECT count(*) FROM orders WHERE note = 'live'").fetchall()
    assert live == sum(writer.written for writer in writers)
    # Clients see clean errors: thrown out, then read-only. The service ends by itself.
    assert {"AdminShutdown", "ReadOnlySqlTransaction"} >= set.union(*(writer.refusals for writer in writers))
    assert replication.service is not None
    assert replication.service.wait(20) == 0
    assert replication.phase() == "cut_over"
    assert read_only_setting(replication.source) == "on"
    # The target takes writes, with IDs that were never given out.
    [(highest,)] = replication.source.execute("SELECT last_value FROM orders_id_seq").fetchall()
    [(fresh,)] = replication.target.execute(
        "INSERT INTO orders (customer_id, note) VALUES (1, 'new') RETURNING id"
    ).fetchall()
    assert fresh == highest + 1
    [(customer,)] = replication.target.execute("INSERT INTO customers (name) VALUES ('new') RETURNING id").fetchall()
    assert customer == 21


def test_a_dry_run_looks_and_leaves_no_trace(replication: Replication):
    result = replicator("cutover", "--dry-run", "--json", cwd=replication.directory, **replication.variables)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["outcome"] == "passed"
    assert {gate["state"] for gate in report["gates"]} == {"pass"}
    assert replication.steps() == {}
    replication.assert_open("after the dry run")
    replication.stop_service()
    result = replicator("cutover", "--dry-run", "--json", cwd=replication.directory, **replication.variables)
    assert result.returncode == 1
    failed = {gate["name"] for gate in json.loads(result.stdout)["gates"] if gate["state"] == "fail"}
    assert failed == {"service", "slot"}


def test_a_gate_that_fails_freezes_nothing(replication: Replication):
    replication.source.execute("CREATE SEQUENCE more; ALTER TABLE customers ALTER name SET DEFAULT nextval('more')")
    with pytest.raises(CutoverRefused, match="no sequence that continues more") as caught:
        replication.cutover()
    assert caught.value.report.outcome == "refused"
    assert replication.steps() == {step.value: "failed" if step == "check" else "pending" for step in ORDER}
    replication.assert_open("after the gate")


def break_session(conn: psycopg.Connection, purpose: str) -> None:
    """End the sessions of the cutover that bear this purpose, as a failing network would."""
    name = f"replicator {purpose}"
    statement = """
        SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = %s
    """
    assert conn.execute(statement, (name,)).fetchall() == [(True,)]


def fail_at_freeze(r: Replication) -> None:
    holder = r.after.enter_context(psycopg.connect(r.pair.source_dsn))
    holder.execute("UPDATE orders SET note = note WHERE id = 1")


def fail_at_fence(r: Replication) -> None:
    break_session(r.source, "cutover")


def fail_at_drain(r: Replication) -> None:
    assert r.service is not None
    r.service.send_signal(signal.SIGSTOP)
    r.after.callback(r.service.send_signal, signal.SIGCONT)


def fail_at_sequences(r: Replication) -> None:
    r.target.execute("ALTER SEQUENCE orders_id_seq MAXVALUE 151")


def fail_at_indexes(r: Replication) -> None:
    r.target.execute(
        """
        INSERT INTO replicator.deferred_index VALUES ('public', 'one_order_each', 'public', 'orders',
            'CREATE UNIQUE INDEX one_order_each ON public.orders USING btree (customer_id)', 'dropped')
        """
    )


def fail_at_verify(r: Replication) -> None:
    r.target.execute("DELETE FROM orders WHERE id = 7")


def fail_at_finalize(r: Replication) -> None:
    break_session(r.source, "cutover freeze")


FAILURES = {
    "freeze": (fail_at_freeze, "could not be locked"),
    "fence": (fail_at_fence, "source:"),
    "drain": (fail_at_drain, "did not deliver the fence"),
    "sequences": (fail_at_sequences, "NumericValueOutOfRange"),
    "indexes": (fail_at_indexes, "violate the unique index one_order_each"),
    "verify": (fail_at_verify, "orders .1 missing"),
    "finalize": (fail_at_finalize, "the lock on its tables was lost"),
}


@pytest.mark.parametrize("step", AFTER_FREEZE)
def test_a_failing_step_undoes_the_cutover(replication: Replication, step: str):
    """By real causes. The source takes writes again, the stream goes on, and another attempt can be made."""
    cause, message = FAILURES[step]
    timeout_s = 2.0 if step in ("freeze", "drain") else 60.0
    cause_at = "fence" if step == "drain" else step  # once the fence is written it is drained in no time
    with pytest.raises(CutoverRefused, match=message) as caught, replication.after:
        replication.cutover(progress=at(cause_at, "running", lambda: cause(replication)), timeout_s=timeout_s)
    assert f"undone at step {step}" in caught.value.message
    assert "the source takes writes again" in caught.value.message
    position = AFTER_FREEZE.index(step)
    assert replication.steps() == {
        "check": "undone",
        **dict.fromkeys(AFTER_FREEZE[:position], "undone"),
        step: "failed",
        **dict.fromkeys(AFTER_FREEZE[position + 1 :], "pending"),
    }
    report = caught.value.report
    assert (report.outcome, report.write_downtime_seconds) == ("undone", None)
    replication.assert_open("after the undo")


def test_another_attempt_after_an_undo_finalizes(replication: Replication):
    with pytest.raises(CutoverRefused):
        replication.cutover(progress=at("verify", "running", lambda: fail_at_verify(replication)))
    replication.target.execute("INSERT INTO orders SELECT 7, 8, 'order 7'")
    replication.write("between the attempts")
    assert replication.cutover().finalized
    replication.assert_same()


def test_a_target_that_is_lost_while_handing_over_is_asked_what_it_committed(replication: Replication):
    """Its session ends before the commit: nothing is handed over, and the source must be open again."""
    with pytest.raises(CutoverRefused, match="undone at step finalize"):
        replication.cutover(
            verify="none", progress=at("finalize", "running", lambda: break_session(replication.target, "cutover"))
        )
    replication.assert_open("after the target came back")


class LostAnswer(threading.Thread):
    """Lets the target commit the hand-over and then never answer: it waits for a standby that does not exist."""

    def __init__(self, r: Replication, then: Callable[[psycopg.Connection[Any]], object]) -> None:
        super().__init__(daemon=True)
        self.r, self.then = r, then

    def begin(self) -> None:
        """Called when `finalize` is about to commit. The service is not needed any more, and would wait too."""
        self.r.stop_service()
        self.configure("SET synchronous_standby_names = 'nobody'")
        time.sleep(1)  # until the server's processes have read that
        self.start()

    def run(self) -> None:
        with psycopg.connect(self.r.pair.target_dsn, autocommit=True) as conn:
            wait_until(
                lambda: (
                    conn.execute(
                        "SELECT count(*) FROM pg_stat_activity"
                        " WHERE application_name = 'replicator cutover' AND wait_event = 'SyncRep'"
                    ).fetchall()
                    == [(1,)]
                )
            )
            self.then(conn)

    def configure(self, change: str) -> None:
        with psycopg.connect(self.r.pair.target_dsn, autocommit=True) as conn:
            conn.execute(f"ALTER SYSTEM {change}".encode())
            conn.execute("SELECT pg_reload_conf()")


def test_a_hand_over_whose_answer_is_lost_still_counts(own_replication: Replication):
    """To take the error for a failure and reopen the source would make two masters."""
    replication = own_replication

    def hang_up(conn: psycopg.Connection[Any]) -> None:
        break_session(conn, "cutover")
        fault.configure("RESET synchronous_standby_names")

    fault = LostAnswer(replication, hang_up)
    report = replication.cutover(progress=at("finalize", "running", fault.begin))
    assert report.finalized
    assert report.writes_after_fence == 0
    assert read_only_setting(replication.source) == "on"
    replication.assert_same()


def test_when_nobody_can_tell_whether_it_was_handed_over_the_source_stays_closed(
    own_replication: Replication, monkeypatch: pytest.MonkeyPatch
):
    replication = own_replication
    monkeypatch.setattr("replicator.cutover.finalize._RECONNECT_S", 2.0)
    fault = LostAnswer(replication, lambda _: replication.pair.target.kill())
    with pytest.raises(StateError, match="the source stays read-only"):
        replication.cutover(progress=at("finalize", "running", fault.begin))
    assert read_only_setting(replication.source) == "on"
    fault.join(20)
    replication.pair.target.start_again()
    fault.configure("RESET synchronous_standby_names")
    report = replication.cutover()
    assert report.finalized
    assert report.writes_after_fence == 0


def test_the_previous_database_setting_is_restored(replication: Replication):
    name = replication.source.info.dbname
    replication.source.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off".encode())
    with pytest.raises(CutoverRefused):
        replication.cutover(progress=at("verify", "running", lambda: fail_at_verify(replication)))
    assert read_only_setting(replication.source) == "off"


def test_only_one_cutover_at_a_time(replication: Replication):
    def second() -> None:
        with pytest.raises(StateError, match="another cutover"):
            replication.cutover()
        with pytest.raises(StateError, match="another cutover"):
            abort(replication.settings)

    assert replication.cutover(progress=at("drain", "running", second)).finalized


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_undoes_the_cutover(replication: Replication, number: signal.Signals):
    assert replication.service is not None
    process = replication.cutover_process("print(record.step, record.state, flush=True); time.sleep(0.2)")
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line == "freeze done\n":
                replication.service.send_signal(signal.SIGSTOP)
            if line == "drain running\n":
                break
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        replication.service.send_signal(signal.SIGCONT)
    assert process.returncode == 1
    assert "interrupted" in errors
    assert replication.steps()["drain"] == "failed"
    replication.assert_open("after the signal")


def kill_at(replication: Replication, step: str, state: str) -> None:
    """A cutover that is killed with SIGKILL the moment a step's state is on record."""
    process = replication.cutover_process(
        f"if (record.step, record.state) == ({step!r}, {state!r}): os.kill(os.getpid(), signal.SIGKILL)"
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors


def write_in_spite_of_the_setting(replication: Replication, note: str) -> None:
    """The lock lets go by itself, so a session that is not read-only writes: an old one, for instance."""
    with psycopg.connect(
        replication.pair.source_dsn, autocommit=True, options="-c default_transaction_read_only=off"
    ) as conn:
        conn.execute("SET lock_timeout = '10s'")
        conn.execute("INSERT INTO orders (customer_id, note) VALUES (1, %s)", (note,))


@pytest.mark.timeout(600)
def test_killed_at_every_step_it_is_resumed_to_the_end(replication: Replication):
    """What was written in between must not be missing: the freeze and all that rests on it are repeated."""
    kills = [(step, state) for step in AFTER_FREEZE for state in ("running", "done")][:-1]
    for step, state in kills:
        kill_at(replication, step, state)
        assert replication.phase() == "cutting_over"
        write_in_spite_of_the_setting(replication, f"killed at {step} {state}")
    assert read_only_setting(replication.source) == "on"
    report = replication.cutover()
    assert report.finalized
    assert all(replication.arrived(f"killed at {step} {state}") for step, state in kills)
    replication.assert_same()
    assert report.writes_after_fence == 0


@pytest.mark.timeout(600)
def test_killed_at_any_step_it_can_be_aborted(replication: Replication):
    for step in AFTER_FREEZE:
        kill_at(replication, step, "running")
        result = replicator("cutover", "abort", cwd=replication.directory, **replication.variables)
        assert result.returncode == 0, result.stderr
        assert not {"running", "done"} & set(replication.steps().values())
        replication.assert_open(f"aborted at {step}")
    with pytest.raises(Refused, match="no unfinished cutover"):
        abort(replication.settings)


def test_a_gate_that_fails_when_resuming_reopens_the_source(replication: Replication):
    """Twice broken: the first attempt's traces are gone from the steps, the setting of the database is not."""
    kill_at(replication, "drain", "running")
    kill_at(replication, "check", "running")
    replication.source.execute("CREATE SEQUENCE more; ALTER TABLE customers ALTER name SET DEFAULT nextval('more')")
    with pytest.raises(CutoverRefused, match="the source takes writes again"):
        replication.cutover()
    replication.assert_open("after both")


def test_killed_after_handing_over_it_closes_the_source_when_run_again(replication: Replication):
    """And tells of writes that came meanwhile: nobody else would."""
    kill_at(replication, "finalize", "done")
    assert replication.phase() == "cut_over"
    assert replication.service is not None
    assert replication.service.wait(20) == 0
    idle = psycopg.connect(replication.pair.source_dsn, autocommit=True)
    write_in_spite_of_the_setting(replication, "too late")
    with pytest.raises(Refused, match="no way back"):
        abort(replication.settings)
    report = replication.cutover()
    assert report.finalized
    assert report.writes_after_fence == 1
    assert any("1 changes were written to the source after the fence" in warning for warning in report.warnings)
    with pytest.raises(psycopg.OperationalError):
        idle.execute("SELECT 1")
    assert replication.cutover().to_json() == report.to_json()
    assert not replication.arrived("too late")


def test_the_service_may_be_restarted_while_the_cutover_drains(replication: Replication):
    assert replication.service is not None

    def restart() -> None:
        assert replication.service is not None
        replication.service.kill()
        replication.service.wait()
        threading.Thread(target=replication.start_service).start()

    assert replication.cutover(progress=at("fence", "running", restart)).finalized
    replication.assert_same()


def test_statements_that_wait_for_the_frozen_tables_do_not_stop_the_comparison(replication: Replication):
    def truncate() -> None:
        options = "-c default_transaction_read_only=off"
        conn = psycopg.connect(replication.pair.source_dsn, autocommit=True, options=options)
        with conn, pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute("TRUNCATE orders")

    thread = threading.Thread(target=truncate)

    def start() -> None:
        thread.start()
        wait_until(
            lambda: (
                replication.source.execute(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
                ).fetchall()
                != [(0,)]
            )
        )

    report = replication.cutover(progress=at("verify", "running", start))
    thread.join(20)
    assert report.finalized
    assert any("TRUNCATE" in warning for warning in report.warnings)
    replication.assert_same()


def test_a_row_that_the_target_refuses_while_it_drains_undoes_the_cutover(replication: Replication):
    """The gates have found the quarantine empty; what is set aside behind them must not be handed over."""
    replication.stop_service()
    replication.quarantine = True
    replication.start_service()
    replication.target.execute("ALTER TABLE orders ADD CONSTRAINT short CHECK (length(note) < 20)")
    late = "late, and too long for the target"
    with pytest.raises(CutoverRefused, match="1 changes that the target refused") as refusal:
        replication.cutover(verify="none", progress=at("freeze", "running", lambda: replication.write(late)))
    assert {each.step.value: each.state.value for each in refusal.value.report.steps}["drain"] == "failed"
    replication.assert_open("still open")
    dry = replication.cutover(dry_run=True)
    assert [gate.name for gate in dry.gates if gate.state == "fail"] == ["quarantine"]
    replication.target.execute("ALTER TABLE orders DROP CONSTRAINT short")
    done = replicator("quarantine", "retry", cwd=replication.directory, **replication.variables)
    assert done.returncode == 0, done.stderr
    assert replication.cutover().outcome == "finalized"
    replication.assert_same()
