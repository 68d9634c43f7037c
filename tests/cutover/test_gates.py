"""The gates against a real replication: each names what is wrong, and how to mend it."""

from __future__ import annotations

import psycopg
import pytest

from replicator.cutover import run_cutover
from replicator.postgres.connection import connect
from replicator.target.state import lock_writer
from tests.cutover.conftest import Replication, read_only_setting, wait_until


def look(replication: Replication, **options: int) -> list[tuple[str, str, str]]:
    """Every gate that does not pass: name, state, message."""
    report = run_cutover(replication.settings, dry_run=True, **options)  # type: ignore[arg-type]
    assert report.ok is all(gate.state != "fail" for gate in report.gates)
    assert all(gate.remedy for gate in report.gates if gate.state != "pass")
    return [(gate.name, gate.state, gate.message) for gate in report.gates if gate.state != "pass"]


FAULTS = [
    ("target", "UPDATE replicator.checkpoint SET system_identifier = '1'", "source", "not the one"),
    (
        "target",
        "UPDATE replicator.table_state SET state = 'pending' WHERE table_name = 'orders'",
        "tables",
        "orders is not copied: pending",
    ),
    (
        "target",
        "INSERT INTO replicator.quarantine"
        " (slot, table_schema, table_name, op, columns, attnums, types, key_columns, lsn)"
        " SELECT slot, 'public', 'orders', 'delete', '{}', '{}', '{}', '{}', '0/1' FROM replicator.checkpoint",
        "quarantine",
        "1 changes",
    ),
    ("source", "ALTER PUBLICATION replicator DROP TABLE orders", "publication", "does not publish orders"),
    ("source", "ALTER TABLE orders RENAME note TO notes", "routes", "column note is NOT NULL"),
    ("target", "ALTER SEQUENCE orders_id_seq MAXVALUE 100", "sequences", "too narrow"),
]
WARNINGS = [
    (
        "target",
        "INSERT INTO replicator.unmapped_id VALUES ('users', 'public', 'orders', 'id', 'x')",
        "unmapped_ids",
        "1 source IDs",
    ),
    (
        "target",
        "ALTER TABLE orders ADD CONSTRAINT positive CHECK (id > 0) NOT VALID",
        "constraints",
        "positive of orders is NOT VALID",
    ),
    (
        "target",
        "INSERT INTO replicator.deferred_index VALUES ('public', 'late', 'public', 'orders', 'CREATE …', 'dropped')",
        "indexes",
        "1 deferred indexes",
    ),
    ("source", "CREATE SEQUENCE tickets", "sequences", "no sequence tickets"),
]


def test_every_fault_is_named(replication: Replication):
    """The service is stopped, so that it neither mends nor stumbles over what is broken here."""
    replication.stop_service()
    assert look(replication) == [
        ("service", "fail", "the service does not run"),
        ("slot", "fail", "nobody reads from the slot"),
    ]
    with connect(replication.pair.target_dsn, "target", purpose="test") as stand_in:
        lock_writer(stand_in, replication.settings.source.slot)
        checkpoint = "UPDATE replicator.checkpoint SET "
        replication.target.execute((checkpoint + "updated_at = now() - interval '2 minutes'").encode())
        assert look(replication)[0][2].startswith("the service has not written its checkpoint for 12")
        replication.target.execute((checkpoint + "updated_at = now(), problem = 'the disk is full'").encode())
        assert look(replication)[0][2] == "the service reports: the disk is full"
        for side, statement, *_ in FAULTS + WARNINGS:
            (replication.source if side == "source" else replication.target).execute(statement.encode())
        found = look(replication, max_lag_bytes=10)
    wanted = [("fail", gate, message) for _, _, gate, message in FAULTS]
    wanted += [("warn", gate, message) for _, _, gate, message in WARNINGS]
    wanted.append(("fail", "lag", "10 are allowed"))
    for state, gate, message in wanted:
        assert any((name, is_) == (gate, state) and message in text for name, is_, text in found), (gate, found)


def test_long_transactions_are_named(replication: Replication, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("replicator.cutover.gates._LONG_TRANSACTION_S", 0.0)
    with psycopg.connect(replication.pair.source_dsn) as holder:
        holder.execute("UPDATE orders SET note = note WHERE id = 1")
        [(name, state, message)] = look(replication)
        assert (name, state) == ("transactions", "warn")
        assert f"process {holder.info.backend_pid}" in message


def test_without_a_replication_there_is_one_answer(replication: Replication):
    settings = replication.settings
    other = settings.model_copy(update={"source": settings.source.model_copy(update={"slot": "another"})})
    report = run_cutover(other, dry_run=True)
    [gate] = report.gates
    assert (gate.name, gate.state) == ("service", "fail")
    assert "nothing has been replicated with slot another" in gate.message


def test_deferred_indexes_are_rebuilt_before_the_source_is_frozen(replication: Replication):
    """Building them while writers wait would be downtime for nothing."""
    replication.target.execute(
        """
        INSERT INTO replicator.deferred_index VALUES ('public', 'orders_note', 'public', 'orders',
            'CREATE INDEX orders_note ON public.orders USING btree (note)', 'dropped');
        DROP INDEX orders_note;
        """
    )
    report = replication.cutover()
    details = {step.step.value: step.detail for step in report.steps}
    assert details["check"]["indexes_rebuilt"] == ["orders_note"]
    assert details["indexes"]["rebuilt"] == []
    assert replication.target.execute("SELECT to_regclass('orders_note') IS NOT NULL").fetchall() == [(True,)]


def test_a_role_that_does_not_own_the_database_cuts_over_and_says_what_it_could_not_do(replication: Replication):
    """The lock alone stops writers; what comes after its release is not in our hands, and the report says so."""
    role = f"mover_{replication.source.info.backend_pid}"
    replication.pair.source.create_role(role, "REPLICATION")
    grants = f"GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}"
    sequences = f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}"
    try:
        replication.source.execute(f"{grants}; {sequences}".encode())
        dsn = psycopg.conninfo.make_conninfo(replication.pair.source_dsn, user=role)
        source = replication.settings.source.model_copy(update={"dsn": dsn})
        replication.settings = replication.settings.model_copy(update={"source": source})
        with psycopg.connect(replication.pair.source_dsn, autocommit=True) as superuser:
            report = replication.cutover()
            superuser.execute("SELECT 1")
        assert report.finalized
        assert read_only_setting(replication.source) is None
        assert any("could not be set read-only" in warning for warning in report.warnings)
        assert any("sessions of the source could not be ended" in warning for warning in report.warnings)
        assert report.writes_after_fence == 0
        assert replication.service is not None
        wait_until(lambda: replication.service is not None and replication.service.poll() == 0)
    finally:
        replication.source.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
