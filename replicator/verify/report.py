"""What a verification found: counts and keys, never any other value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from replicator.model.lsn import Lsn

MAX_KEYS: Final = 20  # per table


@dataclass(frozen=True, slots=True)
class TableReport:
    """One table. ``name`` is the target's, as people write it.

    ``source_rows`` were counted in the source's snapshot. While the stream runs the target moves on, so there
    ``target_rows`` are the rows that it holds of that snapshot: ``source_rows - missing + extra``.
    ``keys``: the first keys that differ, as text in the target's form; columns of a composite key joined by ``, ``.
    """

    name: str
    source_rows: int
    target_rows: int
    missing: int = 0  # on the source only
    extra: int = 0  # on the target only
    different: int = 0  # on both sides, with other values
    keys: tuple[str, ...] = ()

    @property
    def differences(self) -> int:
        """Rows that are missing, extra or different."""
        return self.missing + self.extra + self.different

    @property
    def equal(self) -> bool:
        """Whether both sides hold the same rows."""
        return self.differences == 0

    def to_json(self) -> dict[str, object]:
        """The entry of ``tables`` in ``verify --json``."""
        return {
            "name": self.name,
            "source_rows": self.source_rows,
            "target_rows": self.target_rows,
            "equal": self.equal,
            "missing": self.missing,
            "extra": self.extra,
            "different": self.different,
            "keys": list(self.keys),
        }

    def __str__(self) -> str:
        kinds = (("missing", self.missing), ("extra", self.extra), ("different", self.different))
        return f"{self.name} ({', '.join(f'{count:,} {kind}' for kind, count in kinds if count) or 'equal'})"


@dataclass(frozen=True, slots=True)
class ForeignKeyReport:
    """A foreign key of the target: ``orphans`` rows of ``table`` reference a row that is not there."""

    table: str
    name: str
    orphans: int

    def to_json(self) -> dict[str, object]:
        """The entry of ``foreign_keys`` in ``verify --json``."""
        return {"table": self.table, "name": self.name, "orphans": self.orphans}


@dataclass(frozen=True, slots=True)
class Report:
    """A whole verification. ``lsn``: the source's position at its snapshot. ``notes``: what limits the result."""

    lsn: Lsn
    tables: tuple[TableReport, ...]
    foreign_keys: tuple[ForeignKeyReport, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether every table is equal and every foreign key checked holds."""
        return all(table.equal for table in self.tables) and not self.orphaned

    @property
    def orphaned(self) -> tuple[ForeignKeyReport, ...]:
        """The foreign keys that do not hold."""
        return tuple(key for key in self.foreign_keys if key.orphans)

    def to_json(self) -> dict[str, object]:
        """The document of ``verify --json``."""
        return {
            "equal": self.equal,
            "lsn": str(self.lsn),
            "tables": [table.to_json() for table in self.tables],
            "foreign_keys": [key.to_json() for key in self.foreign_keys],
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """The result in one sentence."""
        rows = sum(table.source_rows for table in self.tables)
        compared = f"{_count(self.tables, 'table')}, {rows:,} rows"
        if self.equal:
            return f"{compared}: equal at {self.lsn}"
        faults = [str(table) for table in self.tables if not table.equal]
        faults += [f"{key.table}.{key.name} ({key.orphans:,} orphans)" for key in self.orphaned]
        return f"{compared}: not equal at {self.lsn}: {', '.join(faults)}"


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}" + ("" if len(things) == 1 else "s")
