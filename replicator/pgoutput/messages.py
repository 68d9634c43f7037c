"""The messages of pgoutput, protocol version 2, in PostgreSQL's own words.

Times are microseconds since 2000-01-01 UTC, as on the wire (``framing.unix_seconds``). OIDs are the source's.
"""

from __future__ import annotations

from dataclasses import dataclass

from replicator.model.lsn import Lsn
from replicator.model.row import Row


# Insert, Update and Delete come once per row, Begin and Commit once per transaction. Not frozen: a frozen dataclass
# sets its fields with object.__setattr__ and takes 0.30 µs to make, a NamedTuple 0.22 µs, this 0.11 µs. Treat them as
# frozen.
@dataclass(slots=True)
class Begin:
    """``B``: a transaction starts; ``final_lsn`` is where its commit record stands."""

    final_lsn: Lsn
    commit_time: int
    xid: int


@dataclass(slots=True)
class Commit:
    """``C``: it ends. ``commit_lsn`` is Begin's ``final_lsn``; ``end_lsn`` lies behind the commit record."""

    flags: int  # always 0 so far
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_time: int


@dataclass(frozen=True, slots=True)
class Origin:
    """``O``: the transaction was itself replicated; ``commit_lsn`` is its commit where it came from."""

    commit_lsn: Lsn
    name: str


@dataclass(frozen=True, slots=True)
class RelationColumn:
    """A published column; ``is_key``: part of the replica identity (every column if that is FULL)."""

    is_key: bool
    name: str
    type_oid: int
    typmod: int  # -1: none


@dataclass(frozen=True, slots=True)
class Relation:
    """``R``: the columns that rows of ``oid`` have from here on; before the first of them and after DDL."""

    oid: int
    namespace: str
    name: str
    replica_identity: str  # pg_class.relreplident: d default, n nothing, f full, i index
    columns: tuple[RelationColumn, ...]


@dataclass(frozen=True, slots=True)
class TypeMessage:
    """``Y``: name of a type that is not built in, before the first Relation that uses it."""

    oid: int
    namespace: str
    name: str


@dataclass(slots=True)
class Insert:
    """``I``: a new row.

    UNCHANGED appears only where a row filter of the publication turned an UPDATE into this INSERT.
    """

    relation_oid: int
    new: Row


@dataclass(slots=True)
class Update:
    """``U``: ``new`` may hold UNCHANGED.

    ``old`` is None unless the key changed or the replica identity is FULL. With ``old_is_key`` it holds the
    replica identity's columns, the others are NULL; without, it is the whole former row.
    """

    relation_oid: int
    old: Row | None
    old_is_key: bool
    new: Row


@dataclass(slots=True)
class Delete:
    """``D``: ``old`` as in Update."""

    relation_oid: int
    old: Row
    old_is_key: bool


@dataclass(frozen=True, slots=True)
class Truncate:
    """``T``: all these relations were emptied together, those that CASCADE reached included."""

    relation_oids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


@dataclass(frozen=True, slots=True)
class LogicalMessage:
    """``M``: written by ``pg_logical_emit_message``; outside Begin and Commit unless ``transactional``."""

    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes


@dataclass(frozen=True, slots=True)
class StreamStart:
    """``S``: up to StreamStop come changes of a transaction that is still in progress, or may yet be rolled back."""

    xid: int
    is_first: bool


@dataclass(frozen=True, slots=True)
class StreamStop:
    """``E``: what follows is of another transaction, or a later piece of the same one."""


@dataclass(frozen=True, slots=True)
class StreamCommit:
    """``c``: the transaction that came in pieces has committed; ``commit`` as of any other."""

    xid: int
    commit: Commit


@dataclass(frozen=True, slots=True)
class StreamAbort:
    """``A``: it was rolled back, or (``subxid`` another than ``xid``) what it did since a savepoint."""

    xid: int
    subxid: int


Message = (
    Begin
    | Commit
    | Origin
    | Relation
    | TypeMessage
    | Insert
    | Update
    | Delete
    | Truncate
    | LogicalMessage
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
)
