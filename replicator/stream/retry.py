"""Changes in quarantine, tried once more: all together, then row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from replicator import pgoutput
from replicator.errors import RowRejected
from replicator.logs import get_logger
from replicator.model.change import Op
from replicator.model.lsn import ZERO
from replicator.model.schema import TableName
from replicator.postgres.connection import Connection
from replicator.routing.idmap import IdMaps
from replicator.routing.route import Route
from replicator.stream.batch import Event, RowEvent, coalesce
from replicator.stream.relations import RoutedTable
from replicator.target import quarantine as store
from replicator.target.quarantine import Held

log = get_logger(__name__)

# One pass takes all that wait for something before them; what waits for something behind it needs one more each.
_PASSES = 5
_TEXTS = frozenset({"text", "character varying", "character"})

# Applies changes, all or none; the refusal, if any.
Attempt = Callable[[Sequence[Event]], RowRejected | None]


@dataclass(slots=True)
class Group:
    """Changes of one row, in order, by number; ``done`` of them went in, ``reason`` is why the next one did not."""

    changes: list[tuple[int, RowEvent]]
    done: int = 0
    reason: str | None = None

    @property
    def left(self) -> list[RowEvent]:
        """What did not go in."""
        return [event for _, event in self.changes[self.done :]]


def settle(attempt: Attempt, groups: Sequence[Group]) -> None:
    """Apply what can be applied; the groups know the outcome."""
    if len(groups) > 1:
        everything = sorted((change for group in groups for change in group.changes), key=lambda change: change[0])
        if attempt([event for _, event in everything]) is None:
            for group in groups:
                group.done = len(group.changes)
            return
    for _ in range(_PASSES):
        progress = [_settle_one(attempt, group) for group in groups if group.left]
        if not any(progress):
            return


def _settle_one(attempt: Attempt, group: Group) -> bool:
    """Their net effect; if that is refused too, as many as possible from the first one on. Whether any went in."""
    before, left = group.done, group.left
    refusal = attempt(left)
    if refusal is not None and len(left) > 1:
        deletes = _deletes_alone(left)
        refusal = None if deletes and attempt(deletes) is None else _settle_in_order(attempt, group, refusal)
    if refusal is None:
        group.done = len(group.changes)
    else:
        group.reason = refusal.reason or refusal.message
    return group.done > before


def _settle_in_order(attempt: Attempt, group: Group, refusal: RowRejected) -> RowRejected | None:
    """As many as go in; why the next one does not. ``refusal`` is that of their net effect."""
    left = group.left
    for at, event in enumerate(left, start=1):
        if event[0] is Op.DELETE and at < len(left):
            # The row comes back later: alone, this would cascade to rows that refer to what came back.
            return refusal
        refused = attempt([event])
        if refused is not None:
            return refused
        group.done += 1
    return None


def _deletes_alone(events: Sequence[RowEvent]) -> list[RowEvent]:
    """The changes, where they amount to nothing but deletes: a cascade of the target's may have done those already."""
    segments = coalesce(events)
    if len(segments) != 1 or not isinstance(segments[0], dict) or len(segments[0]) != 1:
        return []
    [(table, net)] = segments[0].items()
    return [] if net.inserts or net.updates else [(Op.DELETE, table, key, None) for key in net.deletes]


def outcome(groups: Iterable[Group]) -> tuple[list[int], dict[int, str | None]]:
    """The numbers of changes that went in, and why the others did not; None: they wait behind another."""
    settled: list[int] = []
    reasons: dict[int, str | None] = {}
    for group in groups:
        settled += [number for number, _ in group.changes[: group.done]]
        for at, (number, _) in enumerate(group.changes[group.done :]):
            reasons[number] = group.reason if at == 0 else None
    return settled, reasons


def retry(
    conn: Connection, slot: str, routes: Iterable[Route], maps: IdMaps, attempt: Attempt
) -> Counter[tuple[Op, TableName]]:
    """Apply the changes that a retry is requested for, and all others of the same rows, in the open transaction.

    What goes in leaves the quarantine, in this transaction; of the rest the reason is noted. Returns: what went in.
    """
    held = store.load(conn, slot, lock=True)
    requested = store.requested(conn, slot)
    tables = _Tables(routes, maps)
    groups: list[Group] = []
    reasons: dict[int, str | None] = {}
    for places in store.group_by_row([(change.table, change.keys) for change in held]):
        changes = [held[at] for at in places]
        if requested.isdisjoint(change.id for change in changes):
            continue
        faults = [tables.fault(change) for change in changes]
        whole = next((at for at, fault in enumerate(faults) if fault), len(changes))
        # From the first one on that no longer fits its table all have to wait.
        reasons.update((change.id, fault) for change, fault in zip(changes[whole:], faults[whole:], strict=True))
        groups.append(Group([(change.id, tables.event(change)) for change in changes[:whole]]))
    settle(attempt, groups)
    settled, refused = outcome(groups)
    store.remove(conn, settled)
    store.refuse_again(conn, reasons | refused)
    gone = set(settled)
    log.info("changes in quarantine tried again", applied=len(gone), refused=len(reasons | refused))
    return Counter((change.op, change.table) for change in held if change.id in gone)


class _Tables:
    """Tables of the stream as they were when a change came, fitted to what the routes are now."""

    def __init__(self, routes: Iterable[Route], maps: IdMaps) -> None:
        self._routes = {route.name: route for route in routes}
        self._maps = maps
        self._made: dict[tuple[TableName, tuple[str, ...]], RoutedTable] = {}

    def fault(self, change: Held) -> str | None:
        """Why the change no longer fits its table."""
        route = self._routes.get(change.table)
        if route is None:
            return "the table is not replicated any more"
        columns = {column.target.name: column.target for column in route.columns}
        for name, attnum, known in zip(change.columns, change.attnums, change.types, strict=True):
            if name not in columns or columns[name].attnum != attnum:
                return f"column {name} of that time was dropped or renamed, or has no source any more"
            # Other types would read the value's bytes as something else.
            if columns[name].type.name != known and not {columns[name].type.name, known} <= _TEXTS:
                return f"column {name} has another type now"
        key = tuple(route.target_columns[at] for at in route.key) or change.columns
        return None if key == change.key_columns else "the table's key has changed"

    def event(self, change: Held) -> RowEvent:
        """What the stream brought then."""
        return change.op, self._table(change), change.old, change.new

    def _table(self, change: Held) -> RoutedTable:
        known = self._made.get((change.table, change.columns))
        if known is not None:
            return known
        route = self._routes[change.table]
        columns = {column.target.name: column for column in route.columns}
        missing = tuple(name for name in route.target_columns if name not in change.columns)
        route = replace(
            route,
            columns=tuple(columns[name] for name in change.columns),
            defaulted=(*route.defaulted, *missing),
        )
        relation = pgoutput.Relation(
            oid=route.source.oid,
            namespace=route.source.name[0],
            name=route.source.name[1],
            replica_identity=route.source.replica_identity,
            columns=tuple(
                pgoutput.RelationColumn(column.source.name in route.source.key, column.source.name,
                                        column.source.type.oid, column.source.typmod)
                for column in route.columns
            ),
        )  # fmt: skip
        table = self._made[change.table, change.columns] = RoutedTable(route, relation, self._maps, ZERO, ())
        return table
