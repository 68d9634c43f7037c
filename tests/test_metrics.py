"""The metrics: exact names, and series that exist before anything happens."""

from __future__ import annotations

import subprocess
import sys

import pytest
from prometheus_client import REGISTRY, generate_latest

from replicator import errors, metrics

# name → (type, labels), as dashboards and alerts hold on to them.
CONTRACT = {
    "replicator_lag_bytes": ("gauge", ()),
    "replicator_lag_seconds": ("gauge", ()),
    "replicator_received_lsn_bytes": ("gauge", ()),
    "replicator_applied_lsn_bytes": ("gauge", ()),
    "replicator_last_commit_timestamp_seconds": ("gauge", ()),
    "replicator_phase": ("gauge", ("phase",)),
    "replicator_transactions_total": ("counter", ()),
    "replicator_changes_total": ("counter", ("table", "op")),
    "replicator_batch_rows": ("histogram", ()),
    "replicator_batch_duration_seconds": ("histogram", ()),
    "replicator_batch_replays_total": ("counter", ()),
    "replicator_queue_bytes": ("gauge", ()),
    "replicator_snapshot_rows_total": ("counter", ("table",)),
    "replicator_snapshot_rows_estimated": ("gauge", ("table",)),
    "replicator_snapshot_table_state": ("gauge", ("table", "state")),
    "replicator_unmapped_ids_total": ("counter", ("map",)),
    "replicator_quarantined_rows_total": ("counter", ("table",)),
    "replicator_slot_retained_bytes": ("gauge", ()),
    "replicator_slot_safe_bytes": ("gauge", ()),
    "replicator_slot_wal_status": ("gauge", ("status",)),
    "replicator_slot_seconds_until_lost": ("gauge", ()),
    "replicator_reconnects_total": ("counter", ("side",)),
    "replicator_errors_total": ("counter", ("kind",)),
    "replicator_verify_differences": ("gauge", ("table",)),
    "replicator_cutover_step": ("gauge", ("step", "state")),
    "replicator_cutover_write_downtime_seconds": ("gauge", ()),
    "replicator_build_info": ("gauge", ("version",)),
}


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_names_types_and_labels_are_those_of_the_contract() -> None:
    metrics.init_tables(["contract_table"])
    metrics.init_maps(["contract_map"])
    found = {}
    for family in REGISTRY.collect():
        if family.name.startswith("replicator_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for each in family.samples for label in each.labels} - {"le"}
            found[name] = (family.type, labels)
    assert found == {name: (kind, set(labels)) for name, (kind, labels) in CONTRACT.items()}


def test_constants_are_named_after_their_metric() -> None:
    for name in CONTRACT:
        assert hasattr(metrics, name.removeprefix("replicator_").removesuffix("_total").upper()), name


def test_known_series_stand_at_zero_in_a_new_process() -> None:
    """An alert on increase() misses the first error of a series that is born with it."""
    program = (
        "from replicator import metrics; from prometheus_client import generate_latest;"
        "metrics.init_tables(['profiles']); metrics.init_maps(['users']); print(generate_latest().decode())"
    )
    text = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    lines = set(text.splitlines())
    expected = {
        'replicator_phase{phase="cut_over"} 0.0',
        'replicator_slot_wal_status{status="lost"} 0.0',
        'replicator_reconnects_total{side="source"} 0.0',
        'replicator_errors_total{kind="SlotLost"} 0.0',
        'replicator_errors_total{kind="Other"} 0.0',
        'replicator_cutover_step{state="undone",step="finalize"} 0.0',
        'replicator_changes_total{op="truncate",table="profiles"} 0.0',
        'replicator_snapshot_rows_total{table="profiles"} 0.0',
        'replicator_quarantined_rows_total{table="profiles"} 0.0',
        'replicator_verify_differences{table="profiles"} 0.0',
        'replicator_unmapped_ids_total{map="users"} 0.0',
        "replicator_transactions_total 0.0",
        "replicator_slot_seconds_until_lost +Inf",
    }
    assert expected - lines == set()
    assert "_created" not in text


def test_setting_a_phase_clears_the_one_before() -> None:
    metrics.set_phase("copying")
    metrics.set_phase("streaming")
    assert [sample("replicator_phase", phase=phase) for phase in metrics.PHASES] == [0, 0, 0, 1, 0, 0]


def test_states_of_different_tables_and_steps_do_not_touch_each_other() -> None:
    metrics.set_table_state("a", "copying")
    metrics.set_table_state("b", "copied")
    assert sample("replicator_snapshot_table_state", table="a", state="copying") == 1
    assert sample("replicator_snapshot_table_state", table="b", state="copying") == 0
    metrics.set_cutover_step("freeze", "running")
    metrics.set_cutover_step("freeze", "done")
    metrics.set_cutover_step("drain", "running")
    assert sample("replicator_cutover_step", step="freeze", state="running") == 0
    assert sample("replicator_cutover_step", step="freeze", state="done") == 1
    assert sample("replicator_cutover_step", step="drain", state="running") == 1


def test_an_unknown_state_is_refused_rather_than_shown_as_none() -> None:
    metrics.set_phase("streaming")
    with pytest.raises(ValueError, match="sleeping"):
        metrics.set_phase("sleeping")
    with pytest.raises(ValueError, match="gone"):
        metrics.set_wal_status("gone")
    with pytest.raises(ValueError, match="dance"):
        metrics.set_cutover_step("dance", "done")
    assert sample("replicator_phase", phase="streaming") == 1


def test_errors_are_counted_by_class_and_strangers_together() -> None:
    before = {kind: sample("replicator_errors_total", kind=kind) or 0 for kind in ("SlotLost", "Other")}
    metrics.count_error(errors.SlotLost("gone"))
    metrics.count_error(KeyError("x"))
    assert sample("replicator_errors_total", kind="SlotLost") == before["SlotLost"] + 1
    assert sample("replicator_errors_total", kind="Other") == before["Other"] + 1
    assert b'kind="KeyError"' not in generate_latest()
