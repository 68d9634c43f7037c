"""One change of one row, already routed: in the target's columns, ready to be applied."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Op(Enum):
    """What happened; the value is the ``op`` label of the metrics."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"


@dataclass(frozen=True, slots=True)
class TableStats:
    """Changes of one table by operation, for metrics and ``table_state``."""

    inserts: int = 0
    updates: int = 0
    deletes: int = 0
    truncates: int = 0
