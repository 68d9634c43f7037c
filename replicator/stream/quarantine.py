"""Changes set aside: those that the target refuses, and later ones of the same rows, which wait behind them.

What is set aside is stored in the target transaction that its batch is applied in. In memory there are only the keys
of the rows concerned: as long as there are none, the stream does not notice any of this.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from replicator import metrics
from replicator.errors import RowRejected, SchemaMismatch
from replicator.logs import get_logger
from replicator.model.change import Op
from replicator.model.lsn import Lsn
from replicator.model.row import NULL, Field, Row
from replicator.model.schema import TableName, show_table
from replicator.postgres.connection import Connection
from replicator.routing.idmap import OnUnmapped, Unmapped, to_wire
from replicator.routing.route import Route
from replicator.stream.batch import Batch, Event, RowEvent, Truncation, Unmap
from replicator.stream.cascades import Cascades
from replicator.stream.relations import RoutedTable
from replicator.stream.remap import mapped_columns
from replicator.target import quarantine as store
from replicator.target.idmaps import record_unmapped
from replicator.target.quarantine import Held
from replicator.target.statements import TableStatements

log = get_logger(__name__)


@dataclass(slots=True)
class HeldKeys:
    """Of one table. A row with any of these keys has a change that waits."""

    columns: tuple[str, ...]
    rows: set[Row] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A change of the batch at hand. ``at``: which of its events; ``error`` None: it waits behind another."""

    at: int
    event: RowEvent
    error: str | None


@dataclass(slots=True)
class _Aside:
    """What the batch at hand has set aside so far."""

    waiting: list[Waiting] = field(default_factory=list)
    emptied: set[TableName] = field(default_factory=set)  # truncated: what waited of them is moot
    lost: list[Unmap] = field(default_factory=list)
    unmapped: set[Unmapped] = field(default_factory=set)
    keys: dict[TableName, HeldKeys] = field(default_factory=dict)

    def copy(self) -> _Aside:
        keys = {table: HeldKeys(held.columns, set(held.rows)) for table, held in self.keys.items()}
        return _Aside(list(self.waiting), set(self.emptied), list(self.lost), set(self.unmapped), keys)


class Quarantine:
    """The changes that wait, as the applier's thread sees them."""

    def __init__(
        self, conn: Connection, slot: str, routes: Sequence[Route], *, takes: bool, limit: int, live: bool
    ) -> None:
        """``takes``: a refused row is set aside, instead of stopping the stream; ``limit``: how many may wait;
        ``live``: the target's foreign keys act.
        """
        self.takes = takes
        self.count = 0  # stored ones
        self._conn, self._slot, self._routes, self._limit = conn, slot, routes, limit
        self._cascades = Cascades(route.target for route in routes if live)
        self._aside = self._marked = _Aside()
        self._before: dict[TableName, HeldKeys] = {}
        self._ends: list[tuple[int, Lsn]] = []
        self._key_columns: dict[RoutedTable, tuple[str, ...]] = {}
        self._news: Counter[tuple[TableName, str | None]] = Counter()  # to be told once they are committed
        self._moot: Counter[TableName] = Counter()

    @property
    def holds(self) -> bool:
        """Whether there are rows whose changes have to wait."""
        return bool(self._aside.keys)

    def load(self) -> None:
        """Learn anew what waits: at the start, and after somebody else changed it."""
        changes = store.load(self._conn, self._slot)
        keys: dict[TableName, HeldKeys] = {}
        for change in changes:
            keys.setdefault(change.table, HeldKeys(change.key_columns)).rows |= change.keys
        self.count = len(changes)
        self._aside = self._marked = _Aside(keys=keys)
        self._news.clear()
        self._moot.clear()

    # ── one batch ──────────────────────────────────────────────────────────────────────────────────────

    def begin(self, batch: Batch) -> None:
        """``batch`` is applied next."""
        self._ends = batch.ends
        self._aside = _Aside(keys=self._aside.keys)
        self.mark()
        self._before = self._marked.keys

    def mark(self) -> None:
        """Remember what is set aside now, for `rewind`."""
        self._marked = self._aside.copy()

    def rewind(self) -> None:
        """Forget what was set aside since `mark`: it is applied again another way."""
        self._aside = self._marked.copy()

    def divert(self, events: Sequence[Event], start: int = 0) -> Sequence[Event]:
        """Set aside the changes of rows that have one waiting; the others. ``start``: where in the batch they begin."""
        if not self._aside.keys:
            return events
        return [event for at, event in enumerate(events, start) if not self.takes_in(event, at)]

    def takes_in(self, event: Event, at: int) -> bool:
        """Whether this change has to wait; then it is set aside.

        Raises:
            RowRejected: it must not come late.
        """
        if isinstance(event, Truncation):
            self._forget(event)
        elif isinstance(event, Unmap):
            self._unmap(event)
        elif event[1].route.name in self._aside.keys:
            keys = self._keys_of(event)
            if not self._aside.keys[event[1].route.name].rows.isdisjoint(keys):
                self._set_aside(Waiting(at, event, None), keys)
                return True
        return False

    def hold(self, event: RowEvent, at: int, refusal: RowRejected) -> None:
        """Set aside a change that the target refuses.

        Raises:
            RowRejected: too many wait already, or it must not come late.
        """
        self._set_aside(Waiting(at, event, refusal.reason or refusal.message), self._keys_of(event))
        self._require_room()

    def chances(self) -> list[list[Waiting]]:
        """What this batch has set aside and could still go in, now that the rest has, by row: nothing older waits."""
        if not self._aside.waiting:
            return []
        old = {(table, key) for table, held in self._before.items() for key in held.rows}
        waiting = self._aside.waiting
        keys = [(change.event[1].route.name, self._keys_of(change.event)) for change in waiting]
        return [
            [waiting[at] for at in places]
            for places in store.group_by_row(keys)
            if not any((keys[at][0], key) in old for at in places for key in keys[at][1])
        ]

    def settle(self, settled: Iterable[int], reasons: Mapping[int, str | None]) -> None:
        """Changes that went in after all, and why others did not, by their places in the batch."""
        gone = set(settled)
        self._aside.waiting = [
            replace(change, error=reasons.get(change.at, change.error))
            for change in self._aside.waiting
            if change.at not in gone
        ]
        if gone:
            keys = {table: HeldKeys(held.columns, set(held.rows)) for table, held in self._before.items()}
            for table in self._aside.emptied:
                keys.pop(table, None)
            self._aside.keys = keys
            for change in self._aside.waiting:
                self._add_keys(change.event[1], self._keys_of(change.event))

    def flush(self, statements: Callable[[RoutedTable], TableStatements]) -> Counter[tuple[Op, TableName]]:
        """Store what the batch has set aside, in the open transaction; how much of what.

        Raises:
            RowRejected: too many wait already.
        """
        aside = self._aside
        if aside.emptied and self.count:
            for table in aside.emptied:
                removed = store.remove_tables(self._conn, self._slot, [table])
                self.count -= removed
                self._moot[table] += removed
        for lost in aside.lost:
            self._rewrite_lost(lost)
        if aside.unmapped:
            record_unmapped(self._conn, aside.unmapped)
        if aside.waiting:
            self._require_room()
            aside.waiting.sort(key=lambda change: change.at)
            changes = [self._held(change) for change in aside.waiting]
            tables = {change.event[1].route.name: change.event[1] for change in aside.waiting}
            store.store(self._conn, self._slot, changes, {name: statements(table) for name, table in tables.items()})
            self.count += len(changes)
            self._news.update((change.table, change.error) for change in changes)
        if aside.lost:
            self._reload()
        return Counter((change.event[0], change.event[1].route.name) for change in aside.waiting)

    def report(self) -> None:
        """Tell the log and the metrics what was committed just now."""
        for (table, error), count in self._news.items():
            metrics.QUARANTINED_ROWS.labels(table=show_table(table)).inc(count)
            if error is None:
                log.warning("changes wait behind others in quarantine", table=show_table(table), changes=count)
            else:
                log.warning("changes refused and set aside", table=show_table(table), changes=count, reason=error)
        for table, count in self._moot.items():
            if count:
                log.info("truncated: changes in quarantine are moot", table=show_table(table), changes=count)
        self._news.clear()
        self._moot.clear()

    # ── ID maps ────────────────────────────────────────────────────────────────────────────────────────

    def replace_ids(self, table: TableName, column: str, ids: Mapping[str, str]) -> None:
        """See `remap.HeldRows`."""
        route = next(route for route in self._routes if route.name == table)
        kind = route.target.by_name[column].type.name
        fields = {to_wire(kind, source_id): to_wire(kind, target_id) for source_id, target_id in ids.items()}
        if self._rewrite(table, lambda change: _with_fields(change, column, fields)):
            self._reload()

    def fill_nulls(self, route: Route, column: str, rows: Sequence[Row]) -> None:
        """See `remap.HeldRows`."""
        at = route.target_columns.index(column)
        by_key = {tuple(row[position] for position in route.key): {NULL: row[at]} for row in rows}
        names = tuple(route.target_columns[position] for position in route.key)

        def filled(change: Held) -> Held:
            if change.new is None or change.key_columns != names:
                return change
            key = tuple(change.new[change.columns.index(name)] for name in names)
            return _with_fields(change, column, by_key.get(key, {}))

        self._rewrite(route.name, filled)

    def _unmap(self, event: Unmap) -> None:
        """A lookup lost an entry: rows that wait let go of it like those on the target."""
        aside = self._aside
        aside.lost.append(event)
        for route, column, fields in self._lost_fields(event):
            for at, each in enumerate(aside.waiting):
                if each.event[1].route.name == route.name:
                    changed = _event_with_fields(each.event, column, fields)
                    if changed != each.event:
                        aside.waiting[at] = replace(each, event=changed)
                        aside.unmapped.add(Unmapped(event.map, route.name, column, event.source_id))
            held = aside.keys.get(route.name)
            if held is not None and column in held.columns:
                at = held.columns.index(column)
                # Added, not replaced: which of them has the row's later changes is known again after the batch.
                held.rows |= {(*key[:at], fields[key[at]], *key[at + 1 :]) for key in held.rows if key[at] in fields}

    def _rewrite_lost(self, event: Unmap) -> None:
        for route, column, fields in self._lost_fields(event):
            if self._rewrite(route.name, lambda change, c=column, f=fields: _with_fields(change, c, f)):  # type: ignore[misc]
                record_unmapped(self._conn, [Unmapped(event.map, route.name, column, event.source_id)])

    def _lost_fields(self, event: Unmap) -> Iterable[tuple[Route, str, dict[Field, Field]]]:
        for route, column, spec in mapped_columns(self._routes, event.map):
            kind = route.target.by_name[column].type.name
            kept = to_wire(kind, event.source_id) if spec.on_unmapped is OnUnmapped.KEEP else NULL
            yield route, column, {to_wire(kind, event.target_id): kept}

    def _rewrite(self, table: TableName, change_row: Callable[[Held], Held]) -> int:
        if not self.count:
            return 0
        before = store.load(self._conn, self._slot, [table])
        after = [change_row(change) for change in before]
        changed = [new for new, old in zip(after, before, strict=True) if new is not old]
        store.rewrite(self._conn, changed)
        return len(changed)

    # ── inside ─────────────────────────────────────────────────────────────────────────────────────────

    def _reload(self) -> None:
        """Keys have changed under us; what is to be told stays."""
        news, moot = self._news.copy(), self._moot.copy()
        self.load()
        self._news, self._moot = news, moot

    def _set_aside(self, change: Waiting, keys: Iterable[Row]) -> None:
        cascade = self._cascades.of(change.event)
        if cascade is not None:
            referencing, key = cascade
            why = f"is refused, {change.error}," if change.error else "waits behind another one in quarantine"
            raise RowRejected(
                f"target: a change of {change.event[1]} {why} and cannot be set aside: once it goes in, "
                f"foreign key {key.name} of {referencing} carries it on over what these rows have become meanwhile",
                hint="mend the target, `replicator quarantine retry` if anything waits, and start again: the change is "
                "sent again; or let the target's role set session_replication_role: then no foreign key acts",
            )
        self._aside.waiting.append(change)
        self._add_keys(change.event[1], keys)

    def _add_keys(self, table: RoutedTable, keys: Iterable[Row]) -> None:
        held = self._aside.keys.get(table.route.name)
        if held is None:
            held = self._aside.keys[table.route.name] = HeldKeys(self._columns_of(table))
        held.rows.update(keys)

    def _require_room(self) -> None:
        if self.count + len(self._aside.waiting) > self._limit:
            [(table, _)] = Counter(str(change.event[1]) for change in self._aside.waiting).most_common(1)
            raise RowRejected(
                f"more than {self._limit} changes wait in quarantine, the last of them for {table}",
                hint="mend what `replicator quarantine list` shows, then `quarantine retry`, and start again; "
                "`replicator snapshot --table` copies a whole table anew; [stream] max_quarantined is the limit",
            )

    def _forget(self, truncation: Truncation) -> None:
        names = {table.route.name for table in truncation.tables}
        aside = self._aside
        aside.emptied |= names
        aside.waiting = [change for change in aside.waiting if change.event[1].route.name not in names]
        for name in names:
            aside.keys.pop(name, None)

    def _keys_of(self, event: RowEvent) -> set[Row]:
        """The old key and the new one; of a table without a key whole rows."""
        _, table, old, new = event
        held = self._aside.keys.get(table.route.name)
        if held is not None and held.columns != self._columns_of(table):
            raise SchemaMismatch(
                f"{table}: what tells its rows apart has changed while changes of it wait in quarantine",
                hint="mend the target and `replicator quarantine retry`, or copy the table anew: "
                f"`replicator snapshot --table {table}`; then start again",
            )
        keys = set() if old is None else {old}
        if new is not None:
            keys.add(table.key_of(new) if table.has_key else new)
        return keys

    def _columns_of(self, table: RoutedTable) -> tuple[str, ...]:
        columns = self._key_columns.get(table)
        if columns is None:
            names = table.route.target_columns
            columns = tuple(names[at] for at in table.route.key) if table.has_key else names
            self._key_columns[table] = columns
        return columns

    def _held(self, change: Waiting) -> Held:
        op, table, old, new = change.event
        columns = table.route.columns
        lsn = self._ends[bisect_right(self._ends, change.at, key=lambda end: end[0])][1]
        return Held(
            table=table.route.name,
            op=op,
            columns=tuple(column.target.name for column in columns),
            attnums=tuple(column.target.attnum for column in columns),
            types=tuple(column.target.type.name for column in columns),
            key_columns=self._columns_of(table),
            old=old,
            new=new,
            lsn=lsn,
            error=change.error,
        )


def _replaced(row: Row | None, at: int, fields: Mapping[Field, Field]) -> Row | None:
    if row is None or row[at] not in fields:
        return row
    return (*row[:at], fields[row[at]], *row[at + 1 :])


def _with_fields(change: Held, column: str, fields: Mapping[Field, Field]) -> Held:
    old, new = change.old, change.new
    if column in change.key_columns:
        old = _replaced(old, change.key_columns.index(column), fields)
    if column in change.columns:
        new = _replaced(new, change.columns.index(column), fields)
    return change if old is change.old and new is change.new else replace(change, old=old, new=new)


def _event_with_fields(event: RowEvent, column: str, fields: Mapping[Field, Field]) -> RowEvent:
    op, table, old, new = event
    names = table.route.target_columns
    if column not in names:
        return event
    at = names.index(column)
    if not table.has_key:
        return op, table, _replaced(old, at, fields), _replaced(new, at, fields)
    if at in table.route.key:
        old = _replaced(old, table.route.key.index(at), fields)
    return op, table, old, _replaced(new, at, fields)
