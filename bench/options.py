"""How much of everything, from the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """``rows``: of a snapshot; ``transactions``: of the mix, per round. Other sizes follow from these two."""

    rounds: int = 3
    rows: int = 600_000
    transactions: int = 50_000
    many_tables: int = 120
    live_rows: int = 100_000
    latency_s: float = 10.0
    latency_rate: int = 1_000
    partition_rows: tuple[int, ...] = (100_000, 1_000_000)
    partition_changes: int = 20_000
    growth_rows: int = 100_000
    backlog: int = 1_000
    workers: int = 4
    durable: bool = True
    pair: tuple[int, int] = (16, 18)
    peers: tuple[str, ...] = ()  # none: all
    workloads: tuple[str, ...] = ()  # none: all

    def takes(self, peer: str) -> bool:
        return not self.peers or peer in self.peers or peer == "replicator"
