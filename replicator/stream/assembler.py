"""pgoutput messages in, batches of routed changes out: whole source transactions, or parts of a giant one. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from replicator import pgoutput
from replicator.errors import ProtocolError, SchemaMismatch, TooEarly, UnmappedId
from replicator.model.change import Op
from replicator.model.lsn import ZERO, Lsn
from replicator.model.row import UNCHANGED, Row
from replicator.model.schema import TableName
from replicator.routing.idmap import Unmapped
from replicator.source import messages
from replicator.stream.batch import Batch, Event, Truncation, Unmap, fill
from replicator.stream.lookup import LookupFollower, MapChange
from replicator.stream.relations import Relations, RoutedTable, check_width

_INSERT, _UPDATE, _DELETE = Op.INSERT, Op.UPDATE, Op.DELETE

# What a change costs in memory beyond its bytes on the wire: objects per change and per field (measured, CPython 3.11).
_CHANGE_BYTES = 250
_FIELD_BYTES = 50
# Commit times that Python's calendar has, in µs since 2000-01-01: the years 1 to 9999.
_TIMES = (-63_082_281_600_000_000, 252_455_615_999_999_999)
# Everybody on the source may write a message of our prefix: what is not of our making must not reach the checkpoint.
_FENCE = re.compile(re.escape(messages.FENCE) + rb"([0-9A-Za-z_-]{1,64})")


@dataclass(frozen=True, slots=True)
class Position:
    """Nothing is pending on the source before ``lsn``."""

    lsn: Lsn


class Assembler:
    """Follows the transactions of the stream. Feed it every message, in order.

    A transaction whose commit lies before ``applied`` has been applied already and is skipped; nothing else is.

    A large one may come while it is still in progress. Its parts are handed on ahead of its commit as long as nothing
    else comes in between: `TooEarly` asks for a stream of whole transactions.
    """

    def __init__(
        self,
        relations: Relations,
        *,
        applied: Lsn,
        unmapped_before: set[tuple[str, str]],
        part_rows: int,
        part_bytes: int,
        referenced: Collection[TableName] = (),
    ) -> None:
        """``unmapped_before``: (map, source ID) that were met unmapped; ``part_*``: where giant ones are cut;
        ``referenced``: target tables that tables of other lanes reference.
        """
        self._relations = relations
        self._applied = applied
        self._unmapped_seen = unmapped_before
        self._part_rows, self._part_bytes = part_rows, part_bytes
        self._gathered = Batch()  # whole transactions that nobody has taken yet
        self._unmapped: set[Unmapped] = set()
        # The open transaction, or the part of it since the last cut. A batch of its own for each would cost more than
        # the rows of a small one.
        self._events: list[Event] | None = None
        self._size = 0
        self._map_changes: dict[tuple[str, str], str | None] = {}
        self._remap = False
        self._fence: str | None = None
        self._in_parts = False
        self._referenced = referenced
        self._skipping = False
        self._final_lsn = ZERO  # of the transaction in progress: that of the last one, its own is not known yet
        self._in_progress: int | None = None  # its ID
        self.in_stream = False  # the next messages are of it
        self._handlers: dict[type, Callable[[Any], Batch | None]] = {
            pgoutput.Insert: self._insert,
            pgoutput.Update: self._update,
            pgoutput.Delete: self._delete,
            pgoutput.Begin: self._begin,
            pgoutput.Commit: self._commit,
            pgoutput.Relation: self._relation,
            pgoutput.Truncate: self._truncate,
            pgoutput.LogicalMessage: self._message,
            pgoutput.TypeMessage: _nothing,
            pgoutput.Origin: _nothing,
            pgoutput.StreamStart: self._stream_start,
            pgoutput.StreamStop: self._stream_stop,
            pgoutput.StreamCommit: self._stream_commit,
            pgoutput.StreamAbort: self._stream_abort,
        }

    @property
    def in_transaction(self) -> bool:
        """Between BEGIN and COMMIT: a keepalive now says nothing about what has been received."""
        return self._events is not None

    def feed(self, message: pgoutput.Message, size: int) -> Batch | None:
        """Take one message of ``size`` bytes; a batch when one is full, or a part of a giant transaction.

        Raises:
            ProtocolError: messages in an order that the protocol does not allow.
            SchemaMismatch: a relation or row that its route cannot take.
            UnmappedId: an ID without a target ID, and the policy says stop. ``exc.unmapped`` holds them.
            TooEarly: a transaction in progress cannot be applied ahead of its commit.
        """
        try:
            done = self._handlers[type(message)](message)
        except (SchemaMismatch, UnmappedId) as exc:
            if self._in_progress is not None:  # who knows whether it commits
                raise TooEarly(exc.message) from exc
            if isinstance(exc, UnmappedId):
                exc.unmapped = frozenset(self._take_unmapped())
            raise
        if done is not None:
            return done
        events = self._events
        if events is not None and not self._skipping:
            self._size += size + _CHANGE_BYTES
            if self._size >= self._part_bytes or len(events) >= self._part_rows:
                return self.take() or self._cut()
        return None

    def take(self) -> Batch | None:
        """The whole transactions since the last batch; None: there are none. To be called whenever nothing comes in."""
        gathered = self._gathered
        if not gathered.end_lsn:
            return None
        self._gathered = Batch()
        gathered.unmapped |= self._take_unmapped()
        return gathered

    def keepalive(self, wal_end: Lsn) -> Position | None:
        """What a keepalive says about our position: nothing in the middle of a transaction."""
        if self._events is not None:
            return None
        if self._gathered.end_lsn:
            self._gathered.end_lsn = max(self._gathered.end_lsn, wal_end)
            return None
        return Position(wal_end)

    def _transaction(self) -> list[Event]:
        if self._events is None:
            raise ProtocolError("a change came outside of a transaction")
        return self._events

    def _begin(self, begin: pgoutput.Begin) -> None:
        if self._in_progress is not None:
            raise TooEarly("another transaction has committed first")
        if self._events is not None:
            raise ProtocolError(f"BEGIN for {begin.final_lsn} inside the transaction of {self._final_lsn}")
        if begin.final_lsn <= self._final_lsn:
            raise ProtocolError(f"a transaction of {begin.final_lsn} came behind that of {self._final_lsn}")
        self._events = []
        self._final_lsn = begin.final_lsn
        self._skipping = begin.final_lsn < self._applied

    def _commit(self, commit: pgoutput.Commit) -> Batch | None:
        events = self._transaction()
        if commit.commit_lsn != self._final_lsn:
            raise ProtocolError(f"COMMIT at {commit.commit_lsn} ends the transaction of {self._final_lsn}")
        if commit.end_lsn <= commit.commit_lsn or not _TIMES[0] <= commit.commit_time <= _TIMES[1]:
            raise ProtocolError(f"COMMIT at {commit.commit_lsn} has an impossible end or time")
        full = None if self._fits(events) else self.take()
        batch = self._gathered
        if events:
            batch.events += events
            batch.ends.append((len(batch.events), commit.commit_lsn))
            batch.size += self._size
        if not self._skipping:
            batch.transactions += 1
        batch.end_lsn = max(commit.end_lsn, self._applied)
        batch.commit_time = commit.commit_time
        batch.final_part = self._in_parts
        self._note_in(batch)
        self._events, self._size, self._in_parts, self._fence = None, 0, False, None
        return full

    def _stream_start(self, start: pgoutput.StreamStart) -> None:
        if self.in_stream or start.is_first != (start.xid != self._in_progress):
            raise ProtocolError(f"a piece of transaction {start.xid} came out of order")
        if self._in_progress is None:
            if self._events is not None:
                raise ProtocolError(f"transaction {start.xid} came inside the transaction of {self._final_lsn}")
            # The server sends none in progress before the position that we began with: it commits behind that.
            self._final_lsn = max(self._final_lsn, self._applied)
            self._events, self._skipping, self._in_progress = [], False, start.xid
        elif start.is_first:
            raise TooEarly("another transaction in progress came in between")
        self.in_stream = True

    def _stream_stop(self, _: pgoutput.StreamStop) -> None:
        if not self.in_stream:
            raise ProtocolError("a piece of a transaction ended that did not begin")
        self.in_stream = False

    def _stream_commit(self, end: pgoutput.StreamCommit) -> Batch | None:
        if self.in_stream or end.xid != self._in_progress:
            raise ProtocolError(f"the commit of transaction {end.xid} came out of order")
        if end.commit.commit_lsn < self._final_lsn:
            raise ProtocolError(f"a transaction of {end.commit.commit_lsn} came behind that of {self._final_lsn}")
        self._in_progress, self._final_lsn = None, end.commit.commit_lsn
        return self._commit(end.commit)

    def _stream_abort(self, abort: pgoutput.StreamAbort) -> None:
        if self.in_stream or abort.xid != self._in_progress:
            raise ProtocolError(f"the end of transaction {abort.xid} came out of order")
        raise TooEarly("it was rolled back, wholly or to a savepoint")

    def _fits(self, events: list[Event]) -> bool:
        """Whether these may follow the gathered transactions in one batch; see `Batch.is_last`."""
        batch = self._gathered
        return (
            len(batch.events) + len(events) <= self._part_rows
            and batch.size + self._size <= self._part_bytes
            and not batch.is_last
        )

    def _cut(self) -> Batch:
        """End this part of a transaction; the next one goes on."""
        events = self._transaction()
        part = Batch(events, self._size, complete=False, final_part=self._in_parts)
        part.in_progress = self._in_progress is not None
        part.ends.append((len(events), self._final_lsn))
        part.unmapped |= self._take_unmapped()
        self._note_in(part)
        self._events, self._size, self._in_parts = [], 0, True
        return part

    def _note_in(self, batch: Batch) -> None:
        """What the transaction brings besides rows. Its fence counts once all of it is in."""
        batch.fence = self._fence or batch.fence
        if self._map_changes:
            batch.map_changes |= self._map_changes
            self._map_changes = {}
        if self._remap:
            batch.remap, self._remap = True, False

    def _take_unmapped(self) -> set[Unmapped]:
        self._gather_unmapped()
        taken, self._unmapped = self._unmapped, set()
        return taken

    def _gather_unmapped(self) -> None:
        for table in self._relations.mapped:
            if table.mapper.unmapped:
                taken = table.mapper.take_unmapped()
                self._unmapped |= taken
                self._unmapped_seen.update((one.map, one.source_id) for one in taken)

    def _relation(self, relation: pgoutput.Relation) -> None:
        self._gather_unmapped()  # what the old shape met, before it is replaced
        known = self._relations.by_oid.get(relation.oid)
        if self._in_progress is not None and known is not None:
            if known.relation != relation:
                raise TooEarly(f"{known}: the transaction alters it")
            return  # each transaction in progress brings those of all its rows
        self._relations.add(relation, self._final_lsn)

    def _insert(self, insert: pgoutput.Insert) -> None:
        events = self._transaction()
        if self._skipping:
            return
        table = self._relations[insert.relation_oid]
        new = insert.new
        check_width(table, new)
        if UNCHANGED in new:
            raise SchemaMismatch(
                f"{table}: an INSERT came without a TOASTed value: the publication has a row filter",
                hint="publish whole tables: let `replicator` create the publication",
            )
        if table.lookups:
            self._follow(events, table, None, new)
        if self._final_lsn < table.skip_before:
            self._pass_over(table)
            return
        events.append((_INSERT, table, None, table.row(new)))
        self._size += table.width * _FIELD_BYTES

    def _update(self, update: pgoutput.Update) -> None:
        events = self._transaction()
        if self._skipping:
            return
        table = self._relations[update.relation_oid]
        old, new = update.old, update.new
        check_width(table, new)
        if old is not None:
            check_width(table, old)
        if old is not None and UNCHANGED in new:
            new = _fill_from_old(table, old, new, old_is_key=update.old_is_key)
        if table.lookups:
            self._follow(events, table, old, new)
        if self._final_lsn < table.skip_before:
            self._pass_over(table)
            return
        row = table.row(new)
        old_key: Row | None = None
        if not table.has_key:
            if old is None:
                raise SchemaMismatch(f"{table}: an UPDATE came without its old row, and the table has no key")
            old_key = table.row(old)
        elif old is not None:
            old_key = table.old_key(old)
            if old_key == table.key_of(row):
                old_key = None  # replica identity FULL sends the old row every time
        events.append((_UPDATE, table, old_key, row))
        self._size += table.width * _FIELD_BYTES

    def _delete(self, delete: pgoutput.Delete) -> None:
        events = self._transaction()
        if self._skipping:
            return
        table = self._relations[delete.relation_oid]
        check_width(table, delete.old)
        if table.lookups:
            self._follow(events, table, delete.old, None)
        if self._final_lsn < table.skip_before:
            self._pass_over(table)
            return
        key = table.old_key(delete.old) if table.has_key else table.row(delete.old)
        events.append((_DELETE, table, key, None))
        self._size += len(key) * _FIELD_BYTES

    def _truncate(self, truncate: pgoutput.Truncate) -> None:
        events = self._transaction()
        if self._skipping:
            return
        named = [self._relations[oid] for oid in truncate.relation_oids]
        for table in named:
            # Also where the rows are skipped: a lookup is followed from the slot's own position on.
            for lookup in self._lookups_of(table):
                self._note(events, lookup.clear())
            if self._final_lsn < table.skip_before:
                self._pass_over(table)
        tables = tuple(table for table in named if self._final_lsn >= table.skip_before)
        for table in tables:
            if table.mismatch is not None:
                raise table.mismatch
        if tables:
            # What other lanes hold is not named here, and is truncated by them.
            complete = len(tables) == len(truncate.relation_oids) and not any(
                table.route.name in self._referenced for table in tables
            )
            events.append(Truncation(tables, truncate.restart_identity, complete))

    def _message(self, message: pgoutput.LogicalMessage) -> Batch | None:
        if message.prefix != messages.PREFIX or not message.transactional:
            return None
        self._transaction()
        token = _FENCE.fullmatch(message.content)
        if token is not None and not self._skipping:
            self._fence = token[1].decode()
        return None

    def _follow(self, events: list[Event], table: RoutedTable, old: Row | None, new: Row | None) -> None:
        for lookup in self._lookups_of(table):
            self._note(events, lookup.follow(table.layout, old, new))

    def _lookups_of(self, table: RoutedTable) -> tuple[LookupFollower, ...]:
        if table.lookups and self._in_progress is not None:  # entries change at once, also for who remaps meanwhile
            raise TooEarly(f"{table}: its rows change an ID map")
        return table.lookups

    def _pass_over(self, table: RoutedTable) -> None:
        """The table's own snapshot holds the open transaction, and its change is left out."""
        if self._in_progress is not None:
            raise TooEarly(f"{table}: whether its changes count depends on the commit")

    def _note(self, events: list[Event], changes: list[MapChange]) -> None:
        if changes:
            self._gather_unmapped()  # an ID that this very transaction has missed
        for change in changes:
            self._map_changes[change.map, change.source_id] = change.target_id
            if change.was is not None and change.was != change.target_id:
                # Before the row's own change: with live foreign keys its dependents must let go first.
                events.append(Unmap(change.map, change.source_id, change.was))
                self._unmapped_seen.add((change.map, change.source_id))
            if change.target_id is not None and (change.map, change.source_id) in self._unmapped_seen:
                self._remap = True


def _fill_from_old(table: RoutedTable, old: Row, new: Row, *, old_is_key: bool) -> Row:
    """UNCHANGED fields that the old tuple holds: all of them with FULL, otherwise those of the key."""
    if not old_is_key:
        return fill(new, old)
    return tuple(
        before if value is UNCHANGED and column.is_key else value
        for value, before, column in zip(new, old, table.relation.columns, strict=True)
    )


def _nothing(_: object) -> None:
    return None
