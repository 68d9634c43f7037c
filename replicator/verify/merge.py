"""Compare two ordered streams of rows: what is the same byte for byte passes, the rest is suspect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from replicator.verify.keys import Key
from replicator.verify.plan import Plan

TICK_ROWS: Final = 4096

Tick = Callable[[int], None]  # called with the rows of the source seen so far; may raise to stop


@dataclass(frozen=True, slots=True)
class Suspect:
    """A key whose rows were not the same: still to be looked at again."""

    key: Key
    on_source: bool
    on_target: bool


@dataclass(slots=True)
class Counts:
    """Rows seen on each side."""

    source: int = 0
    target: int = 0


def merge(
    plan: Plan, source: Iterator[bytes], target: Iterator[bytes], counts: Counts, tick: Tick
) -> Iterator[Suspect]:
    """The suspects among two streams of rows in key order, both in the target's form.

    A row is left out only where the other side sends the very same bytes. So an order that is not what we expect costs
    time, never a difference.
    """
    # Hot loop: equal rows cost one comparison and are not parsed.
    ours, theirs = next(source, None), next(target, None)
    while ours is not None and theirs is not None:
        if ours == theirs:
            ours, theirs = next(source, None), next(target, None)
            counts.source += 1
            counts.target += 1
        else:
            our_key, their_key = plan.key_of_row(ours), plan.key_of_row(theirs)
            our_rank, their_rank = plan.rank(our_key), plan.rank(their_key)
            key = our_key if our_rank <= their_rank else their_key
            yield Suspect(key, our_rank <= their_rank, their_rank <= our_rank)
            if our_rank <= their_rank:
                ours = next(source, None)
                counts.source += 1
            if their_rank <= our_rank:
                theirs = next(target, None)
                counts.target += 1
        if not counts.source % TICK_ROWS:
            tick(counts.source)
    while ours is not None:
        yield Suspect(plan.key_of_row(ours), True, False)
        ours = next(source, None)
        counts.source += 1
        if not counts.source % TICK_ROWS:
            tick(counts.source)
    while theirs is not None:
        yield Suspect(plan.key_of_row(theirs), False, True)
        theirs = next(target, None)
        counts.target += 1
        if not counts.target % TICK_ROWS:
            tick(counts.source)
