"""Dependency order, computed from the foreign keys of the side that is written."""

from __future__ import annotations

import random

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.demo import freshtrack
from replicator.postgres.catalog import load_tables
from replicator.postgres.connection import connect
from replicator.routing.order import dependencies, levels
from tests.routing.tables import table

FRESHTRACK = [
    "organizations",
    "subscriptions profiles sites ttn_connections user_roles",
    "escalation_contacts areas hubs event_logs",
    "units",
    "alert_rules devices manual_temperature_logs",
    "lora_sensors calibration_records sensor_readings door_events alerts alert_rules_history pairing_sessions",
    "corrective_actions notification_deliveries",
]


def tables_of(references):
    return [table(name, [], references=others) for name, others in references.items()]


def names(result):
    return [[name for _, name in level] for level in result]


def test_a_level_references_only_earlier_ones():
    given = {"c": ["b", "a"], "b": ["a"], "a": [], "d": ["a"], "alone": []}
    assert names(levels(tables_of(given))) == [["a", "alone"], ["b", "d"], ["c"]]


def test_references_to_itself_and_to_strangers_do_not_count():
    assert names(levels(tables_of({"tree": ["tree"], "b": ["elsewhere", "tree"]}))) == [["tree"], ["b"]]


@pytest.mark.parametrize("cycle", [["a", "b"], ["a", "b", "c"], list("abcdefgh")])
def test_a_cycle_is_broken_and_every_table_comes_once(cycle):
    references = {name: [cycle[i - 1]] for i, name in enumerate(cycle)}
    result = levels(tables_of(references | {"after": [cycle[0]], "before": []}))
    flat = [name for level in names(result) for name in level]
    assert sorted(flat) == sorted([*cycle, "after", "before"])
    assert flat.index("after") > flat.index(cycle[0])
    broken = [(a, b) for a in cycle for b in references[a] if flat.index(b) > flat.index(a)]
    assert len(broken) == 1, "only one reference of the cycle is given up"


@given(st.dictionaries(st.sampled_from("abcdefg"), st.lists(st.sampled_from("abcdefg"), max_size=4), max_size=7))
def test_any_graph_has_levels(references):
    tables = tables_of(references)
    result = levels(tables)
    at = {name: i for i, level in enumerate(result) for name in level}
    assert sorted(at) == sorted(t.name for t in tables)
    for name, needed in dependencies(tables).items():
        assert all(at[other] < at[name] for other in needed)


def test_the_order_does_not_depend_on_that_of_the_settings():
    tables = tables_of({"c": ["b"], "b": ["c", "a"], "a": [], "d": ["b"]})
    expected = levels(tables)
    for seed in range(5):
        assert levels(random.Random(seed).sample(tables, len(tables))) == expected


def test_freshtrack_has_its_seven_levels(database):
    with psycopg.connect(database) as schema:
        schema.execute(freshtrack.target_schema().encode())
    with connect(database, "target", purpose="test") as conn:
        tables = load_tables(conn, [("public", name) for name in freshtrack.TABLES])
    assert len(tables) == 23
    assert names(levels(tables.values())) == [sorted(level.split()) for level in FRESHTRACK]
