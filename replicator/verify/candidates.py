"""From a key of the target back to the source: which source keys an ID map may have turned into it."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping

from replicator.model.row import NULL, UNCHANGED, Field
from replicator.routing.idmap import IdMaps
from replicator.verify.keys import Key
from replicator.verify.plan import Plan

Candidates = Callable[[Key], tuple[Key, ...]]


def candidates_of(plan: Plan, maps: IdMaps) -> Candidates:
    """A function from a key in the target's form to the source keys that may lead to it."""
    if not plan.key.mapped:
        return lambda key: (key,)
    reverses = [_reverse(plan, column.position, maps) if column.mapped else {} for column in plan.key.columns]

    def candidates(key: Key) -> tuple[Key, ...]:
        # Each ID as it is, since it may be unmapped, and all that map to it.
        choices = [
            dict.fromkeys([value, *reverse.get(value, ())]) for value, reverse in zip(key, reverses, strict=True)
        ]
        return tuple(itertools.product(*choices))

    return candidates


def _reverse(plan: Plan, position: int, maps: IdMaps) -> Mapping[Field, list[Field]]:
    column = plan.route.columns[position]
    assert column.id_map is not None
    found: dict[Field, list[Field]] = defaultdict(list)
    for source_id, target_id in maps.get(column.id_map.name, column.target.type.name).fields.items():
        if source_id not in (NULL, UNCHANGED):
            found[target_id].append(source_id)
    return found
