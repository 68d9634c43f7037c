"""Compare two streams of rows that cannot be ordered alike, in flat memory.

First one sum of digests per bucket; then the rows of the buckets whose sums differ, as many at a time as memory allows.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Final

from replicator.model.row import Field
from replicator.verify.keys import Key
from replicator.verify.merge import TICK_ROWS, Counts, Tick
from replicator.verify.plan import Plan
from replicator.verify.rows import Streams, digest

BUCKETS: Final = 1 << 14
MAX_ROWS: Final = 100_000  # looked at in one pass, both sides; some 30 MB
_MAX_PASSES: Final = 8

Identity = Key | Field  # a row's key, or its digest in a table without one


@dataclass(slots=True)
class Group:
    """The rows of one identity. ``delta``: sum of the digests on the source minus those on the target."""

    source: int = 0
    target: int = 0
    delta: int = 0


def compare_buckets(plan: Plan, streams: Streams, counts: Counts, tick: Tick) -> list[int]:
    """The buckets whose rows are not the same on both sides; empty if the tables are equal."""
    sums = [0] * BUCKETS
    source, target = streams()
    for at, row_digest in _bucketed(plan, source):
        sums[at] += int.from_bytes(row_digest, "big")
        counts.source += 1
        if not counts.source % TICK_ROWS:
            tick(counts.source)
    for at, row_digest in _bucketed(plan, target):
        sums[at] -= int.from_bytes(row_digest, "big")
        counts.target += 1
        if not counts.target % TICK_ROWS:
            tick(counts.source)
    return [at for at, total in enumerate(sums) if total]


def find_groups(
    plan: Plan, streams: Streams, buckets: list[int], counts: Counts, tick: Tick
) -> Iterator[dict[Identity, Group]]:
    """What differs in these buckets, a slice of them at a time. Ends early where there is too much to look at."""
    rows_per_bucket = max(1, (counts.source + counts.target) // BUCKETS)
    step = max(1, MAX_ROWS // rows_per_bucket)
    for start in range(0, min(len(buckets), step * _MAX_PASSES), step):
        yield _groups(plan, streams, frozenset(buckets[start : start + step]), tick)


def unseen_buckets(buckets: list[int], counts: Counts) -> int:
    """How many of the buckets `find_groups` does not get to."""
    rows_per_bucket = max(1, (counts.source + counts.target) // BUCKETS)
    return max(0, len(buckets) - max(1, MAX_ROWS // rows_per_bucket) * _MAX_PASSES)


def _bucketed(plan: Plan, rows: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    # `hash` is salted per process and fast; both sides are read by this one.
    mask = BUCKETS - 1
    if plan.key.columns:
        key_of = plan.key_of_row
        return ((hash(key_of(row)) & mask, digest(row)) for row in rows)
    return ((hash(found) & mask, found) for found in map(digest, rows))


def _groups(plan: Plan, streams: Streams, buckets: Container[int], tick: Tick) -> dict[Identity, Group]:
    groups: dict[Identity, Group] = {}
    source, target = streams()
    for identity, row_digest in _identified(plan, source, buckets, tick):
        group = groups.setdefault(identity, Group())
        group.source += 1
        group.delta += int.from_bytes(row_digest, "big")
    for identity, row_digest in _identified(plan, target, buckets, tick):
        group = groups.setdefault(identity, Group())
        group.target += 1
        group.delta -= int.from_bytes(row_digest, "big")
    return {identity: group for identity, group in groups.items() if group.delta or group.source != group.target}


def _identified(
    plan: Plan, rows: Iterator[bytes], buckets: Container[int], tick: Tick
) -> Iterator[tuple[Identity, bytes]]:
    mask = BUCKETS - 1
    keyed = bool(plan.key.columns)
    for at, row in enumerate(rows):
        row_digest = digest(row)
        identity: Identity = plan.key_of_row(row) if keyed else row_digest
        if hash(identity) & mask in buckets:
            yield identity, row_digest
        if not at % TICK_ROWS:
            tick(0)
