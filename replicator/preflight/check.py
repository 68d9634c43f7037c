"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from replicator.model.schema import TableName, show_table

Where = Literal["source", "target", "both"]


class Status(Enum):
    """The verdict of one check."""

    PASS = "pass"  # noqa: S105  # a verdict
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what was found and, unless it passed, what to do about it."""

    name: str
    side: Where
    status: Status
    message: str
    remedy: str = ""
    table: TableName | None = None

    def to_json(self) -> dict[str, str]:
        """As ``check --json`` shows it; ``table`` only where there is one."""
        document = {
            "name": self.name,
            "side": self.side,
            "status": self.status.value,
            "message": self.message,
            "remedy": self.remedy,
        }
        if self.table is not None:
            document["table"] = show_table(self.table)
        return document


def passed(name: str, side: Where, message: str, table: TableName | None = None) -> Check:
    """Nothing to do."""
    return Check(name, side, Status.PASS, message, "", table)


def warned(name: str, side: Where, message: str, remedy: str, table: TableName | None = None) -> Check:
    """It works now, but may not later, or not as expected."""
    return Check(name, side, Status.WARN, message, remedy, table)


def failed(name: str, side: Where, message: str, remedy: str, table: TableName | None = None) -> Check:
    """It will not work like this."""
    return Check(name, side, Status.FAIL, message, remedy, table)


def or_passed(checks: list[Check], name: str, side: Where, message: str) -> list[Check]:
    """``checks``, or one that passed with ``message`` where nothing was found."""
    return checks or [passed(name, side, message)]
