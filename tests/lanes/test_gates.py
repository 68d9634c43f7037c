"""What stops a cutover stops it in whichever lane it is: lane 1 is well in all of these."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from replicator.cutover import gates, steps
from replicator.cutover.journal import Journal
from replicator.errors import Refused
from replicator.postgres.connection import Connection, connect

MAX_LAG_BYTES = 16 << 20
QUARANTINED = """
INSERT INTO replicator.quarantine
    (slot, table_schema, table_name, op, columns, attnums, types, key_columns, lsn)
VALUES (%s, 'public', 'readings', 'delete', '{}', '{}', '{}', '{}', '0/1')
"""
# Gate → side, what is done to lane 2, and how it is taken back; the last two cannot be.
FAULTS = [
    ("source", "target", "UPDATE replicator.checkpoint SET system_identifier = '1' WHERE slot = %s",
     "UPDATE replicator.checkpoint SET system_identifier = (SELECT max(system_identifier) FROM replicator.checkpoint)"
     " WHERE slot = %s"),
    ("phase", "target", "UPDATE replicator.checkpoint SET phase = 'copying' WHERE slot = %s",
     "UPDATE replicator.checkpoint SET phase = 'catching_up' WHERE slot = %s"),
    ("tables", "target", "UPDATE replicator.table_state SET state = 'copy_requested' WHERE slot = %s",
     "UPDATE replicator.table_state SET state = 'copied' WHERE slot = %s"),
    ("service", "target", "UPDATE replicator.checkpoint SET problem = 'planted' WHERE slot = %s",
     "UPDATE replicator.checkpoint SET problem = NULL WHERE slot = %s"),
    ("quarantine", "target", QUARANTINED, "DELETE FROM replicator.quarantine WHERE slot = %s"),
    ("lag", "target", "UPDATE replicator.checkpoint SET applied_lsn = '0/1' WHERE slot = %s",
     "UPDATE replicator.checkpoint SET applied_lsn = (SELECT max(applied_lsn) FROM replicator.checkpoint)"
     " WHERE slot = %s"),
    ("publication", "source", "ALTER PUBLICATION replicator_2 DROP TABLE events", ""),
    ("slot", "source", "SELECT pg_drop_replication_slot(%s)", ""),
]  # fmt: skip


@contextmanager
def sessions(settings) -> Iterator[tuple[Connection, Connection]]:
    with (
        connect(settings.source.dsn, "source", purpose="test") as source,
        connect(settings.target.dsn, "target", purpose="test") as target,
    ):
        yield source, target


def failed(rig, source, target, lane):
    """Gate and message; of what lane 1 fails at too, since no service runs here, nothing."""
    found = gates.look(rig.settings, source, target, MAX_LAG_BYTES).failed
    told = {n: {(gate.name, gate.message.removeprefix(f"lane {n}: ")) for gate in found
                if gate.message.startswith(f"lane {n}: ")} for n in (1, 2)}  # fmt: skip
    return {name for name, _ in told[lane] - told[3 - lane]}


def test_every_gate_looks_at_every_lane(make_lanes):
    rig = make_lanes()
    rig.run("snapshot")
    slot = rig.slot_of(2)
    with sessions(rig.settings) as (source, target):
        # The writers' locks stand for the services: so that the gate comes to what these report.
        for lane in (1, 2):
            target.execute("SELECT pg_advisory_lock(x'7265706c'::int, hashtext(%s))", [rig.slot_of(lane)])
        assert failed(rig, source, target, 2) == set()
        lasting: set[str] = set()
        for gate, side, fault, mend in FAULTS:
            rig.ask(side, fault, *[slot] * fault.count("%s"))
            assert failed(rig, source, target, 2) == lasting | {gate}
            if mend:
                rig.ask(side, mend, slot)
            else:
                lasting.add(gate)
        # Nobody reads from lane 1's slot: that is all that it says itself.
        assert failed(rig, source, target, 1) == {"slot"}


def test_a_quarantine_that_filled_in_any_lane_since_the_gates_stops_the_cutover(make_lanes):
    rig = make_lanes()
    rig.run("snapshot")
    rig.ask("target", "UPDATE replicator.checkpoint SET fence = 'token'")
    with sessions(rig.settings) as (source, target):
        journal = Journal(target, [rig.slot_of(lane) for lane in (1, 2)])
        options = steps.Options(MAX_LAG_BYTES, 30, "none")
        site = steps.Site(rig.settings, options, target, source, source, journal)
        site.fence, site.deadline = "token", time.monotonic() + 30
        assert steps.drain(site)
        for lane in (1, 2):
            rig.ask("target", QUARANTINED, rig.slot_of(lane))
            with pytest.raises(Refused, match="1 changes that the target refused are in quarantine"):
                steps.drain(site)
            rig.ask("target", "DELETE FROM replicator.quarantine")
