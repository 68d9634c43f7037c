"""What a soak has done so far, its progress lines, and the summary at its end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    seed: int
    pairs: list[str] = field(default_factory=list)
    rounds: int = 0
    comparisons: int = 0
    rows_compared: int = 0
    transactions: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)  # what came of them
    lives: int = 0
    cutovers: int = 0
    longest_sigterm_s: float = 0.0
    longest_downtime_s: float = 0.0
    started: float = field(default_factory=time.monotonic)
    failure: str | None = None
    again: str | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        """A progress line on stderr."""
        minutes, seconds = divmod(int(self.seconds), 60)
        sys.stderr.write(f"{minutes:3}:{seconds:02} round {self.rounds:<2} {text}\n")
        sys.stderr.flush()

    def fault(self, name: str, text: str = "") -> None:
        self.faults[name] += 1
        self.say(f"  {name} {text}".rstrip())

    def event(self, name: str, text: str = "") -> None:
        self.events[name] += 1
        self.say(f"    … {name} {text}".rstrip())

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.failure is None,
            "seed": self.seed,
            "pairs": self.pairs,
            "hours": round(self.seconds / 3600, 3),
            "rounds": self.rounds,
            "comparisons": self.comparisons,
            "rows_compared": self.rows_compared,
            "transactions": self.transactions,
            "lives_of_the_service": self.lives,
            "cutovers_finalized": self.cutovers,
            "faults_total": self.faults.total(),
            "faults": dict(self.faults.most_common()),
            "events": dict(self.events.most_common()),
            "longest_sigterm_s": round(self.longest_sigterm_s, 1),
            "longest_downtime_s": round(self.longest_downtime_s, 1),
            "failure": self.failure,
            "again": self.again,
        }
