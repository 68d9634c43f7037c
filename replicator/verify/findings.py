"""Differences of one table while they are gathered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from replicator.verify.merge import Suspect

Digests = Counter[bytes]


@dataclass(slots=True)
class Findings:
    """Counts, the first keys as text, and notes on what limits the result."""

    missing: int = 0
    extra: int = 0
    different: int = 0
    keys: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All differences."""
        return self.missing + self.extra + self.different

    def add_rows(self, source: Digests, target: Digests) -> None:
        """Count the rows of one key: what is left on both sides once equal rows are paired."""
        ours, theirs = (source - target).total(), (target - source).total()
        both = min(ours, theirs)
        self.different += both
        self.missing += ours - both
        self.extra += theirs - both

    def add_suspect(self, suspect: Suspect) -> None:
        """Count a suspect as it was first seen."""
        if suspect.on_source and suspect.on_target:
            self.different += 1
        elif suspect.on_source:
            self.missing += 1
        else:
            self.extra += 1

    def note(self, text: str) -> None:
        """Add a note once."""
        if text not in self.notes:
            self.notes.append(text)
