"""The status as both sides tell it, and the monitor that keeps reading it."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from jsonschema import validate
from prometheus_client import REGISTRY

from replicator import metrics, service
from replicator.config import Settings
from replicator.errors import ConfigError, TransientError
from replicator.monitor import Monitor
from replicator.status import SlotStatus, Status, StatusReader
from tests.snapshot.case import Case, simple_case, slot_name

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text)"

# contract: `status --json`
SCHEMA = {
    "type": "object",
    "properties": {
        "phase": {"enum": list(metrics.PHASES)},
        "applied_lsn": {"type": ["string", "null"]},
        "source_lsn": {"type": ["string", "null"]},
        "lag_bytes": {"type": ["integer", "null"]},
        "lag_seconds": {"type": ["number", "null"]},
        "slot": {
            "type": ["object", "null"],
            "properties": {
                "name": {"type": "string"},
                "active": {"type": "boolean"},
                "wal_status": {"enum": list(metrics.WAL_STATUSES)},
                "retained_bytes": {"type": "integer"},
                "safe_bytes": {"type": ["integer", "null"]},
                "seconds_until_lost": {"type": ["number", "null"]},
            },
            "required": ["name", "active", "wal_status", "retained_bytes", "safe_bytes", "seconds_until_lost"],
        },
        "tables": {
            "type": "array",
            "items": {"required": ["name", "state", "rows_copied", "rows_applied", "snapshot_lsn"]},
        },
        "unmapped_ids": {"type": "integer"},
        "quarantined_rows": {"type": "integer"},
        "cutover": {"type": "array", "items": {"required": ["step", "state", "started_at", "finished_at"]}},
        "healthy": {"type": "boolean"},
        "problems": {"type": "array", "items": {"type": "string"}},
    },
    "required": [
        *("phase", "applied_lsn", "source_lsn", "lag_bytes", "lag_seconds", "slot", "tables", "unmapped_ids"),
        *("quarantined_rows", "cutover", "healthy", "problems"),
    ],
}


def prepare(source_dsn: str, target_dsn: str, rows: int = 10) -> Case:
    case = simple_case(source_dsn, target_dsn, metrics={"listen": ""})
    case.execute("source", TABLE)
    case.execute("target", TABLE)
    case.execute("source", f"INSERT INTO t SELECT i, 'a' FROM generate_series(1, {rows}) i")
    return case


@pytest.fixture
def case(pair):
    return prepare(pair.source_dsn, pair.target_dsn)


@dataclass
class Running:
    """The service in a thread, stopped in time."""

    settings: Settings
    service: service.Service = field(init=False)

    def __enter__(self) -> Running:
        self.service = service.Service(self.settings, truncate=False, until=None, until_caught_up=False)
        self.thread = threading.Thread(target=self.service.run)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.service.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


def wait_until(look, timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)
    return found


def read(settings: Settings) -> Status:
    reader = StatusReader(settings)
    try:
        return reader.read()
    finally:
        reader.close()


def test_before_anything_is_done(case):
    status = read(case.settings)
    validate(status.to_json(), SCHEMA)
    assert (status.phase, status.applied_lsn, status.slot, status.tables) == ("new", None, None, ())
    assert status.source_lsn is not None
    assert status.healthy


def test_a_snapshot_without_a_service_is_unhealthy(case):
    assert case.run()
    status = read(case.settings)
    validate(status.to_json(), SCHEMA)
    assert status.phase == "catching_up"
    [table] = status.tables
    assert (table.name, table.state, table.rows_copied, table.rows_applied) == ("t", "copied", 10, 0)
    assert table.snapshot_lsn == str(status.applied_lsn)
    assert [problem for problem in status.problems if "service is not running" in problem]
    assert status.slot is not None
    assert (status.slot.name, status.slot.active) == (case.slot, False)


def test_behind_without_a_service_the_lag_grows_with_time(case):
    assert case.run()
    case.execute("source", "INSERT INTO t VALUES (11, 'b')")
    case.execute("target", "UPDATE replicator.checkpoint SET lag_seconds = 3, updated_at = now() - interval '1 min'")
    status = read(case.settings)
    assert status.lag_bytes is not None
    assert status.lag_bytes > 0
    assert status.lag_seconds == pytest.approx(63, abs=3)


def test_a_service_that_streams_is_healthy_and_its_status_complete(case):
    reader = StatusReader(case.settings)
    with Running(case.settings):
        wait_until(lambda: reader.read().phase == "streaming")
        case.execute("source", "UPDATE t SET v = 'b'")
        status = wait_until(lambda: (s := reader.read()).tables[0].rows_applied == 10 and s.lag_bytes == 0 and s)
        validate(status.to_json(), SCHEMA)
        json.dumps(status.to_json(), allow_nan=False)
        assert status.healthy, status.problems
        assert status.lag_seconds == 0.0
        assert status.slot.active
        assert status.applied_lsn <= status.source_lsn
    # The server needs a moment to see that the session which held the lock is gone.
    wait_until(lambda: any("service is not running" in problem for problem in reader.read().problems))
    reader.close()


@pytest.mark.parametrize(
    "statement, problem",
    [
        ("UPDATE replicator.checkpoint SET problem = 'a row of t is refused'", "a row of t is refused"),
        (
            "INSERT INTO replicator.quarantine"
            " (slot, table_schema, table_name, op, columns, attnums, types, key_columns, lsn)"
            " SELECT slot, 'public', 't', 'delete', '{}', '{}', '{}', '{}', '0/1' FROM replicator.checkpoint",
            "1 changes are in quarantine",
        ),
        ("UPDATE replicator.checkpoint SET database = 'another'", "another server or database"),
        (
            "UPDATE replicator.checkpoint"
            " SET phase = 'streaming', lag_seconds = 90, updated_at = now() - interval '9 s'",
            "s behind",
        ),
    ],
)
def test_what_needs_a_person_is_a_problem(case, statement, problem):
    assert case.run()
    case.execute("source", "INSERT INTO t VALUES (11, 'b')")
    case.execute("target", statement)
    status = read(case.settings)
    assert not status.healthy
    assert [each for each in status.problems if problem in each]


def test_a_slot_that_is_gone_is_a_problem_until_the_cutover(case):
    assert case.run()
    case.execute("source", "SELECT pg_drop_replication_slot(%s)", case.slot)
    assert [each for each in read(case.settings).problems if "slot is gone" in each]
    case.execute("target", "UPDATE replicator.checkpoint SET phase = 'cut_over'")
    status = read(case.settings)
    assert status.problems == ()
    assert (status.lag_bytes, status.lag_seconds) == (0, 0.0)


def test_unmapped_ids_and_cutover_steps_are_shown_and_no_problem(case):
    assert case.run()
    case.execute(
        "target",
        "INSERT INTO replicator.unmapped_id (map, table_schema, table_name, column_name, source_id)"
        " VALUES ('users', 'public', 't', 'v', 'x'), ('users', 'public', 't', 'w', 'x')",
    )
    case.execute(
        "target",
        "INSERT INTO replicator.cutover_step VALUES (%s, 'check', 0, 'done', '2026-01-01 00:00Z', NULL),"
        " (%s, 'freeze', 1, 'running', now(), NULL)",
        case.slot,
        case.slot,
    )
    status = read(case.settings)
    assert status.unmapped_ids == 1
    document = status.to_json()
    validate(document, SCHEMA)
    assert document["cutover"][0] == {
        "step": "check",
        "state": "done",
        "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": None,
        "write_downtime_seconds": None,
    }
    assert [step["step"] for step in document["cutover"]] == ["check", "freeze"]
    assert all("service is not running" in problem for problem in status.problems)


def test_a_source_that_goes_and_comes_again(own_servers):
    case = prepare(own_servers.source_dsn, own_servers.target_dsn)
    assert case.run()
    reader = StatusReader(case.settings)
    assert reader.read().source_lsn is not None
    own_servers.source.stop()
    status = reader.read()
    validate(status.to_json(), SCHEMA)
    assert (status.source_lsn, status.lag_bytes, status.slot) == (None, None, None)
    assert status.phase == "catching_up"
    assert "the source does not answer" in status.problems[0]
    assert not [problem for problem in status.problems if "slot" in problem], "nothing is known of the slot"
    own_servers.source.start_again()
    assert reader.read().source_lsn is not None
    own_servers.target.restart()
    assert reader.read().phase == "catching_up", "a target that was restarted is asked again at once"
    own_servers.target.stop()
    with pytest.raises(TransientError):
        reader.read()
    reader.close()


def test_a_slot_on_its_way_to_be_lost(start_server):
    """Forecast, unreserved or lost: each is told before and after the fact."""
    source = start_server(16, settings={"max_slot_wal_keep_size": "64MB", "max_wal_size": "64MB"})
    target = start_server(16)
    case = prepare(source.create_database("app"), target.create_database("app"))
    assert case.run()
    now = [0.0]
    reader = StatusReader(case.settings, clock=lambda: now[0])
    first = reader.read()
    assert first.slot is not None
    assert first.slot.safe_bytes is not None
    assert first.slot.seconds_until_lost is None, "one reading tells no rate"
    now[0] = 10.0
    case.execute("source", "CREATE TABLE noise AS SELECT repeat('x', 100) FROM generate_series(1, 50000)")
    second = reader.read()
    assert second.slot is not None
    rate = (second.source_lsn - first.source_lsn) / 10
    assert second.slot.seconds_until_lost == pytest.approx(second.slot.safe_bytes / rate)
    assert [problem for problem in second.problems if "may be lost in" in problem]
    now[0] = 20.0
    assert reader.read().slot.seconds_until_lost > second.slot.seconds_until_lost, "the rate falls"
    now[0] = 200.0
    reader.read()
    now[0] = 260.0
    assert reader.read().slot.seconds_until_lost is None, "an idle source loses nothing"

    for _ in range(12):
        case.execute("source", "INSERT INTO noise SELECT repeat('x', 100) FROM generate_series(1, 100000)")
        case.execute("source", "SELECT pg_switch_wal()")
        case.execute("source", "CHECKPOINT")
    lost = reader.read()
    assert lost.slot.wal_status == "lost"
    [problem] = [each for each in lost.problems if "is lost: the source has removed WAL" in each]
    assert "run --truncate" in problem
    validate(lost.to_json(), SCHEMA)
    reader.close()


def test_another_slot_of_the_same_target_has_its_own_status(case):
    assert case.run()
    other = case.settings.model_copy(update={"source": case.settings.source.model_copy(update={"slot": "other"})})
    assert read(other).phase == "new"


# ── monitor ────────────────────────────────────────────────────────────────────────────────────────────


def gauge(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_the_monitor_sets_the_gauges_and_writes_heartbeats(case):
    assert case.run()
    slot = f"watch_{slot_name(case.source_dsn)}"
    case.execute("source", "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    monitor = Monitor(case.settings)
    assert monitor.problems() == ["the status has not been read yet"]
    with monitor:
        wait_until(lambda: monitor.status()["phase"] == "catching_up")
        messages = wait_until(
            lambda: case.execute(
                "source",
                "SELECT encode(data, 'escape') FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL,"
                " 'proto_version', '1', 'publication_names', 'replicator', 'messages', 'true')"
                " WHERE get_byte(data, 0) = ascii('M')",
                slot,
            )
        )
    assert "replicator" in messages[0][0]
    assert "heartbeat" in messages[0][0]
    assert gauge("replicator_phase", phase="catching_up") == 1
    assert gauge("replicator_phase", phase="new") == 0
    assert gauge("replicator_slot_wal_status", status="reserved") == 1
    assert gauge("replicator_slot_safe_bytes") == float("inf")
    assert gauge("replicator_snapshot_table_state", table="t", state="copied") == 1
    status = monitor.status()
    validate(status, SCHEMA)
    assert status["problems"] == monitor.problems() != []


def test_no_heartbeat_before_the_stream_begins(case):
    """There is no slot yet, or nobody reads it: the source is left alone."""
    case.run(exclude=[("public", "t")])
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'replicator heartbeat' AND datname = %s"
    database = case.value("source", "SELECT current_database()")
    with Monitor(case.settings) as monitor:
        wait_until(lambda: monitor.status()["phase"] == "copying")
        time.sleep(0.5)
        assert case.value("source", sessions, database) == 0
        case.execute("target", "UPDATE replicator.checkpoint SET phase = 'streaming'")
        wait_until(lambda: case.value("source", sessions, database) == 1)


def test_the_monitor_outlives_an_outage_of_either_side(own_servers):
    case = prepare(own_servers.source_dsn, own_servers.target_dsn)
    assert case.run()
    with Monitor(case.settings) as monitor:
        wait_until(lambda: monitor.status()["phase"] == "catching_up")
        own_servers.target.stop()
        wait_until(lambda: any("cannot be read" in problem for problem in monitor.problems()))
        assert monitor.status()["phase"] == "catching_up", "the last reading stays"
        assert monitor.status()["healthy"] is False
        own_servers.target.start_again()
        wait_until(lambda: not any("cannot be read" in problem for problem in monitor.problems()))
        own_servers.source.restart()
        wait_until(lambda: monitor.status()["source_lsn"] is not None)


def test_the_monitor_stops_at_once_also_when_a_server_hangs(own_servers):
    case = prepare(own_servers.source_dsn, own_servers.target_dsn)
    assert case.run()
    monitor = Monitor(case.settings)
    monitor.start()
    wait_until(lambda: monitor.status()["phase"] == "catching_up")
    own_servers.target.pause()
    try:
        time.sleep(2.5)  # by now it waits for an answer
        started = time.monotonic()
        monitor.stop()
        assert time.monotonic() - started < 1.0
    finally:
        own_servers.target.resume()


def test_a_monitor_without_a_usable_dsn_says_so_and_stays():
    settings = Settings(source={"dsn": "host=127.0.0.1 port=1"}, target={"dsn": "nonsense"})
    with pytest.raises(ConfigError):
        read(settings)
    with Monitor(settings) as monitor:
        wait_until(lambda: any("libpq connection string" in problem for problem in monitor.problems()))


def test_gauges_of_an_unlimited_slot_are_infinite_and_unknown_steps_are_left_out():
    from replicator.monitor import set_gauges
    from replicator.status import StepStatus

    slot = SlotStatus("s", True, "extended", 5, None, None)
    set_gauges(
        Status(phase="streaming", lag_bytes=7, slot=slot, cutover=(StepStatus("unheard of", "done", None, None),))
    )
    assert gauge("replicator_lag_bytes") == 7
    assert gauge("replicator_slot_seconds_until_lost") == float("inf")
    set_gauges(Status(slot=SlotStatus("s", True, "extended", 5, 100, 12.5)))
    assert gauge("replicator_slot_seconds_until_lost") == 12.5
    assert gauge("replicator_slot_safe_bytes") == 100
    assert gauge("replicator_lag_bytes") == 7, "what is not known keeps its last value"
