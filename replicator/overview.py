"""The status of all lanes as one: as far as the one that is furthest behind, with the problems of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from replicator.config import Settings
from replicator.status import RUNNING_PHASES, LaneStatus, SlotStatus, Status, StatusReader
from replicator.target.state import PHASES

T = TypeVar("T", int, float)

# From bad to worse.
_WAL_STATUSES = ("reserved", "extended", "unreserved", "lost")


class Reader(Protocol):
    """Reads the status again and again."""

    def read(self) -> Status:
        """One reading."""

    def close(self) -> None:
        """Close the connections."""


def open_reader(settings: Settings) -> Reader:
    """Reads the status of these settings: of all lanes, or of the only one."""
    lanes = settings.split()
    return LanesReader(lanes) if len(lanes) > 1 else StatusReader(lanes[0])


class LanesReader:
    """Reads every lane's status, over two connections each. Not safe for several threads at once."""

    def __init__(self, lanes: Sequence[Settings]) -> None:
        self._lanes = [(lane, StatusReader(lane)) for lane in lanes]

    def read(self) -> Status:
        """One reading of each lane, as one.

        Raises:
            ReplicatorError: the target does not answer.
        """
        found = {lane.lane_number: reader.read() for lane, reader in self._lanes}
        if any(status.phase in RUNNING_PHASES for status in found.values()):
            commands = {lane.lane_number: lane.run_command for lane, _ in self._lanes}
            return combine(found, idle=lambda number: f"not begun yet: start it with `{commands[number]}`")
        return combine(found)

    def close(self) -> None:
        """Close all connections; a later `read` opens them again."""
        for _, reader in self._lanes:
            reader.close()


def combine(lanes: dict[int, Status], *, idle: Callable[[int], str] | None = None) -> Status:
    """One status of several, by lane.

    The phase is that of the lane that is least advanced, positions and lags are those of the one furthest behind, the
    slot is the one that is nearest to its end.

    Args:
        idle: what to say of lanes that have not begun, where that is a problem.
    """
    every = list(lanes.values())
    begun = [status for status in every if status.phase != "new"]
    applied = [status.applied_lsn for status in every]
    positions = [status.source_lsn for status in every if status.source_lsn is not None]
    problems = _told({number: status.problems for number, status in lanes.items()})
    if idle is not None:
        problems += [f"lane {number}: {idle(number)}" for number, status in lanes.items() if status.phase == "new"]
    problem = _told({number: (status.problem,) for number, status in lanes.items() if status.problem})
    return Status(
        phase=min((status.phase for status in every), key=PHASES.index),
        applied_lsn=None if None in applied else min(lsn for lsn in applied if lsn is not None),
        source_lsn=max(positions, default=None),
        lag_bytes=_most([status.lag_bytes for status in every]),
        lag_seconds=_most([status.lag_seconds for status in every]),
        slot=_worst([status.slot for status in begun or every]),
        tables=tuple(sorted((table for status in every for table in status.tables), key=lambda table: table.name)),
        unmapped_ids=max(status.unmapped_ids for status in every),  # the maps are shared, and so are these
        quarantined_rows=sum(status.quarantined_rows for status in every),
        cutover=next((status.cutover for status in every if status.cutover), ()),
        problem="; ".join(problem) or None,
        problems=tuple(problems),
        notes=tuple(_told({number: status.notes for number, status in lanes.items()})),
        waits=tuple(_told({number: status.waits for number, status in lanes.items()})),
        lanes=tuple(LaneStatus(number, status) for number, status in lanes.items()),
    )


def _told(lines: dict[int, tuple[str, ...]]) -> list[str]:
    """Each line with its lane; what all lanes say, once and without."""
    common = [line for line in next(iter(lines.values()), ()) if all(line in each for each in lines.values())]
    common = common if len(lines) > 1 else []
    return common + [f"lane {number}: {line}" for number, each in lines.items() for line in each if line not in common]


def _most(values: Sequence[T | None]) -> T | None:
    """The most of them; None where one is not known."""
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _worst(slots: Sequence[SlotStatus | None]) -> SlotStatus | None:
    """The slot nearest to its end; None, as ever, where one is gone."""
    found = [slot for slot in slots if slot is not None]
    if len(found) < len(slots):
        return None
    return max(found, key=_badness, default=None)


def _badness(slot: SlotStatus) -> tuple[int, bool, float, int]:
    status = _WAL_STATUSES.index(slot.wal_status) if slot.wal_status in _WAL_STATUSES else 0
    left = float("-inf") if slot.seconds_until_lost is None else -slot.seconds_until_lost
    return status, not slot.active, left, slot.retained_bytes
