"""What one example does: tables, and groups of transactions between restarts. Prints as a script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.properties.schemas import Limits, Schema, schemas
from tests.properties.transactions import Transaction, transactions

WAYS = ("one by one", "one batch", "running", "stopped")


@dataclass(frozen=True)
class Group:
    """Transactions, and how they reach the applier.

    one by one: each is applied before the next one begins; one batch: all together; running: as it happens;
    stopped: the stream begins when all are there.
    """

    way: str
    transactions: tuple[Transaction, ...]


@dataclass(frozen=True, repr=False)
class Plan:
    schema: Schema
    copied: tuple[Transaction, ...] | None  # what the snapshot finds; None: no snapshot
    groups: tuple[Group, ...]
    live: bool  # the target's role may not silence constraints
    batch_rows: int

    def __repr__(self) -> str:
        """Majors that the tables may not be for: the newest ones'."""
        lines = ["", f"-- live constraints: {self.live}; max_batch_rows: {self.batch_rows}", self.schema.ddl(0, 18),
                 "-- target", self.schema.ddl(1, 18)]  # fmt: skip
        if self.copied is not None:
            lines += ["-- before the snapshot", *map(_script, self.copied)]
        for group in self.groups:
            lines += [f"-- {group.way}", *map(_script, group.transactions)]
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints of a failing example."""
        printer.text(repr(self))


def _script(transaction: Transaction) -> str:
    end = "COMMIT" if transaction.commits else "ROLLBACK"
    return "".join(f"{line};\n" for line in ("BEGIN", *transaction.statements, end))


@st.composite
def plans(draw: st.DrawFn, limits: Limits) -> Plan:
    schema = draw(schemas(limits))
    some = st.lists(transactions(schema), min_size=1, max_size=5).map(tuple)
    first = draw(some)
    snapshot = draw(st.integers(0, 3)) == 3
    batch_rows = draw(st.sampled_from([20_000, 20_000, 1, 3, 40]))
    groups = [] if snapshot else [Group("running", first)]
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(WAYS if batch_rows == 20_000 else WAYS[2:]))
        groups.append(Group(way, draw(some)))
    return Plan(schema, first if snapshot else None, tuple(groups), draw(st.booleans()), batch_rows)
