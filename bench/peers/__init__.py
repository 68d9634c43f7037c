"""The movers that are compared, one file each, behind one small protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.lab import Lab

# Columns that ID maps of ours change: in these tables only the numbers of rows can be compared with the source.
MAPPED_TABLES = frozenset({"profiles", "user_roles", "calibration_records", "alert_rules_history"})


@dataclass(frozen=True, slots=True)
class Measured:
    """What one timed run took.

    Attributes:
        seconds: wall time, process start included.
        stream_s: of these, from the start of the replication session until it had caught up; None: no stream.
        schema_s: of these, creating tables and types where the peer does not do it by itself.
        cpu_s: CPU time of the peer's own processes; None: it runs inside the server.
        server_cpu_s: CPU time of both servers meanwhile; whoever times the run fills it in.
        peak_rss: bytes, of the peer's own processes.
    """

    seconds: float
    stream_s: float | None = None
    schema_s: float = 0.0
    cpu_s: float | None = None
    peak_rss: int | None = None
    server_cpu_s: float | None = None


@dataclass(frozen=True)
class Case:
    """What a peer needs to know. ``settings``: ours, with ``{target}`` in place of the target's DSN."""

    lab: Lab
    source_dsn: str
    tables: Sequence[str]
    settings: str
    map_file: Path
    workers: int = 4
    schema: Path | None = None  # of the target; None: as the source's


class Peer(Protocol):
    """One way to move the rows of a case: prepare once, run for each round, clean at the end."""

    name: str
    target_dsn: str | None  # what to compare with the source; None: it keeps no rows
    mapped: frozenset[str]  # tables whose rows are meant to differ

    def unavailable(self) -> str | None:
        """Why it cannot take part; None: it can."""

    def prepare(self) -> None:
        """What is not timed. Of a stream: the initial copy, or a slot."""

    def run(self) -> Measured:
        """The timed part. Of a stream: catch up with what was written since the last time.

        Raises:
            PeerFailed: it could not.
        """

    def clean(self) -> None:
        """Leave nothing behind on either server; safe after a failure."""
