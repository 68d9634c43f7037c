"""What to ask the failpoints for: a place, an action and a visit that fit."""

from __future__ import annotations

from random import Random

from replicator import failpoints

_NAMES = failpoints.NAMES
SNAPSHOT = _NAMES[: _NAMES.index("before_checkpoint_read")]
STREAM = _NAMES[_NAMES.index("before_checkpoint_read") : _NAMES.index("after_feedback") + 1]
CUTOVER = _NAMES[_NAMES.index("after_feedback") + 1 :]
WITHOUT_CONNECTION = tuple(name for name in _NAMES if "feedback" in name or "_step:" in name)
OFTEN = ("before_batch", "after_batch", "before_commit", "after_commit", "before_feedback", "after_feedback",
         "before_part", "after_part", "before_table_copied", "after_table_copied", "after_table_entered")  # fmt: skip

_ACTIONS = (("kill", 6), ("term", 2), ("fail", 2), ("lost", 3), ("reject", 1), ("hold", 2), ("slow", 1))


def choose(rng: Random, *, copying: bool) -> str:
    """For a life of the service: mostly a place that it will come to."""
    name = rng.choice(SNAPSHOT if copying and rng.random() < 0.8 else STREAM)
    return fault(rng, name)


def fault(rng: Random, name: str) -> str:
    """``NAME=ACTION…`` with an action that this place knows."""
    actions = [(action, weight) for action, weight in _ACTIONS if action != "lost" or name not in WITHOUT_CONNECTION]
    [action] = rng.choices([action for action, _ in actions], [weight for _, weight in actions])
    seconds = {"hold": f":{rng.uniform(0.5, 5.0):.1f}", "slow": ":0.2"}.get(action, "")
    nth = rng.choice((1, 1, 2, 3, 5, 10, 20)) if name in OFTEN else 1
    return f"{name}={action}{seconds}@{nth}"
