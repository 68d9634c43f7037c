"""pgoutput bytes to messages: protocol version 2 with the options ``binary``, ``messages`` and ``streaming``."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NoReturn

from replicator.errors import ProtocolError
from replicator.model.lsn import Lsn
from replicator.model.row import Row
from replicator.pgoutput.messages import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    RelationColumn,
    StreamAbort,
    StreamCommit,
    StreamStart,
    StreamStop,
    Truncate,
    TypeMessage,
    Update,
)
from replicator.pgoutput.tuples import tuple_data

_BEGIN: Final = struct.Struct(">xQqI")
_COMMIT: Final = struct.Struct(">xBQQq")
_STREAM_START: Final = struct.Struct(">xIB")
_STREAM_COMMIT: Final = struct.Struct(">xIBQQq")
_STREAM_ABORT: Final = struct.Struct(">xII")
_TRUNCATE: Final = struct.Struct(">xIB")
_LOGICAL_MESSAGE: Final = struct.Struct(">xBQ")
_COLUMN_TYPE: Final = struct.Struct(">Ii")
_OID_AND_MARKER: Final = struct.Struct(">xIB").unpack_from
_UINT64: Final = struct.Struct(">Q").unpack_from
_UINT32: Final = struct.Struct(">I").unpack_from
_UINT16: Final = struct.Struct(">H").unpack_from

_MAX_INT16: Final = 0x7FFF
_MAX_INT32: Final = 0x7FFFFFFF
_ROW_AT: Final = 6  # behind type, relation OID and marker
_NEW, _OLD, _KEY = b"NOK"
_IS_KEY: Final = {_KEY: True, _OLD: False}
_REPLICA_IDENTITIES: Final = frozenset(b"dnfi")
_XID_BYTES: Final = 4
_WITH_XID: Final = frozenset(b"RYIUDTM")
_TRUNCATE_CASCADE: Final = 1
_TRUNCATE_RESTART_IDENTITY: Final = 2


def decode(data: bytes, at: int = 0, in_stream: bool = False) -> Message:
    """Decode one pgoutput message (protocol version 2).

    It knows nothing of earlier messages: whether a row has as many fields as its Relation has columns
    is for the caller to check.

    Args:
        data: at offset ``at`` the type byte, then big-endian fields, up to the end.
        at: how long a header is left in front, so that no message is copied just to take one off.
        in_stream: it came between StreamStart and StreamStop, where changes have a transaction ID behind their type.

    Raises:
        ProtocolError: unknown type, marker or flag, short payload, bytes left over, a name that is not UTF-8.

    Source: PostgreSQL docs, "Logical Replication Message Formats".
    """
    try:
        if in_stream and data[at] in _WITH_XID:
            # The ID tells savepoints apart, which nobody here does.
            data, at = data[at : at + 1] + data[at + 1 + _XID_BYTES :], 0
        decoder = _DECODERS.get(data[at])
        if decoder is None:
            _fail(data, at, "is of a type that protocol version 2 does not have")
        return decoder(data, at)
    except (IndexError, struct.error) as exc:
        raise ProtocolError(_describe(data, at, "is cut short")) from exc
    except UnicodeDecodeError as exc:
        raise ProtocolError(_describe(data, at, "holds a name that is not UTF-8")) from exc


def _describe(data: bytes, at: int, fault: str) -> str:
    return f"pgoutput message {data[at : at + 1]!r} of {max(0, len(data) - at)} bytes {fault}"


def _fail(data: bytes, at: int, fault: str) -> NoReturn:
    raise ProtocolError(_describe(data, at, fault))


def _check_end(data: bytes, at: int, end: int) -> None:
    if end != len(data):
        _fail(data, at, "is cut short" if end > len(data) else f"has bytes left over from offset {end - at}")


def _name(data: bytes, at: int, pos: int) -> tuple[str, int]:
    """A NUL-terminated string and the offset behind its NUL."""
    end = data.find(0, pos)
    if end < 0:
        _fail(data, at, "holds a name without its NUL")
    return data[pos:end].decode(), end + 1


def _namespace(data: bytes, at: int, pos: int) -> tuple[str, int]:
    name, pos = _name(data, at, pos)
    return name or "pg_catalog", pos  # the server sends that one as the empty string


def _row(data: bytes, at: int, pos: int) -> tuple[Row, int]:
    """TupleData at ``pos`` and the offset behind it."""
    row, end = tuple_data(data, pos)
    if end < 0:
        _fail(data, at, "has a wrong number of columns or a column of unknown kind")
    return row, end


def _begin(data: bytes, at: int) -> Begin:
    final_lsn, commit_time, xid = _BEGIN.unpack_from(data, at)
    _check_end(data, at, at + _BEGIN.size)
    return Begin(Lsn(final_lsn), commit_time, xid)


def _commit(data: bytes, at: int) -> Commit:
    flags, commit_lsn, end_lsn, commit_time = _COMMIT.unpack_from(data, at)
    _check_end(data, at, at + _COMMIT.size)
    if flags:
        _fail(data, at, f"has unknown flags {flags:#04x}")
    return Commit(flags, Lsn(commit_lsn), Lsn(end_lsn), commit_time)


def _stream_start(data: bytes, at: int) -> StreamStart:
    xid, is_first = _STREAM_START.unpack_from(data, at)
    _check_end(data, at, at + _STREAM_START.size)
    if is_first > 1:
        _fail(data, at, f"has unknown flags {is_first:#04x}")
    return StreamStart(xid, is_first == 1)


def _stream_stop(data: bytes, at: int) -> StreamStop:
    _check_end(data, at, at + 1)
    return StreamStop()


def _stream_commit(data: bytes, at: int) -> StreamCommit:
    xid, flags, commit_lsn, end_lsn, commit_time = _STREAM_COMMIT.unpack_from(data, at)
    _check_end(data, at, at + _STREAM_COMMIT.size)
    if flags:
        _fail(data, at, f"has unknown flags {flags:#04x}")
    return StreamCommit(xid, Commit(flags, Lsn(commit_lsn), Lsn(end_lsn), commit_time))


def _stream_abort(data: bytes, at: int) -> StreamAbort:
    xid, subxid = _STREAM_ABORT.unpack_from(data, at)
    _check_end(data, at, at + _STREAM_ABORT.size)
    return StreamAbort(xid, subxid)


def _origin(data: bytes, at: int) -> Origin:
    (commit_lsn,) = _UINT64(data, at + 1)
    name, end = _name(data, at, at + 9)
    _check_end(data, at, end)
    return Origin(Lsn(commit_lsn), name)


def _relation(data: bytes, at: int) -> Relation:
    (oid,) = _UINT32(data, at + 1)
    namespace, pos = _namespace(data, at, at + 5)
    name, pos = _name(data, at, pos)
    replica_identity = data[pos]
    if replica_identity not in _REPLICA_IDENTITIES:
        _fail(data, at, f"has unknown replica identity {replica_identity:#04x}")
    (count,) = _UINT16(data, pos + 1)
    if count > _MAX_INT16:
        _fail(data, at, "has a wrong number of columns")
    pos += 3
    columns = []
    for _ in range(count):
        column, pos = _relation_column(data, at, pos)
        columns.append(column)
    _check_end(data, at, pos)
    return Relation(oid, namespace, name, chr(replica_identity), tuple(columns))


def _relation_column(data: bytes, at: int, pos: int) -> tuple[RelationColumn, int]:
    flags = data[pos]
    if flags > 1:
        _fail(data, at, f"has a column with unknown flags {flags:#04x}")
    name, pos = _name(data, at, pos + 1)
    type_oid, typmod = _COLUMN_TYPE.unpack_from(data, pos)
    return RelationColumn(flags == 1, name, type_oid, typmod), pos + _COLUMN_TYPE.size


def _type(data: bytes, at: int) -> TypeMessage:
    (oid,) = _UINT32(data, at + 1)
    namespace, pos = _namespace(data, at, at + 5)
    name, end = _name(data, at, pos)
    _check_end(data, at, end)
    return TypeMessage(oid, namespace, name)


def _insert(data: bytes, at: int) -> Insert:
    oid, marker = _OID_AND_MARKER(data, at)
    if marker != _NEW:
        _fail(data, at, f"has marker {marker:#04x} where N was due")
    new, end = _row(data, at, at + _ROW_AT)
    if end != len(data):
        _check_end(data, at, end)
    return Insert(oid, new)


def _update(data: bytes, at: int) -> Update:
    oid, marker = _OID_AND_MARKER(data, at)
    old: Row | None = None
    old_is_key = False
    pos = at + _ROW_AT
    if marker != _NEW:
        old_is_key = _is_key(data, at, marker)
        old, pos = _row(data, at, pos)
        marker = data[pos]
        if marker != _NEW:
            _fail(data, at, f"has marker {marker:#04x} where N was due")
        pos += 1
    new, end = _row(data, at, pos)
    if end != len(data):
        _check_end(data, at, end)
    return Update(oid, old, old_is_key, new)


def _delete(data: bytes, at: int) -> Delete:
    oid, marker = _OID_AND_MARKER(data, at)
    old_is_key = _is_key(data, at, marker)
    old, end = _row(data, at, at + _ROW_AT)
    if end != len(data):
        _check_end(data, at, end)
    return Delete(oid, old, old_is_key)


def _is_key(data: bytes, at: int, marker: int) -> bool:
    is_key = _IS_KEY.get(marker)
    if is_key is None:
        _fail(data, at, f"has marker {marker:#04x} where K or O was due")
    return is_key


def _truncate(data: bytes, at: int) -> Truncate:
    count, options = _TRUNCATE.unpack_from(data, at)
    # Before the OIDs are read: a count that lies must not size anything.
    _check_end(data, at, at + _TRUNCATE.size + 4 * count)
    if options & ~(_TRUNCATE_CASCADE | _TRUNCATE_RESTART_IDENTITY):
        _fail(data, at, f"has unknown options {options:#04x}")
    oids = struct.unpack_from(f">{count}I", data, at + _TRUNCATE.size)
    return Truncate(oids, bool(options & _TRUNCATE_CASCADE), bool(options & _TRUNCATE_RESTART_IDENTITY))


def _logical_message(data: bytes, at: int) -> LogicalMessage:
    flags, lsn = _LOGICAL_MESSAGE.unpack_from(data, at)
    if flags > 1:
        _fail(data, at, f"has unknown flags {flags:#04x}")
    prefix, pos = _name(data, at, at + _LOGICAL_MESSAGE.size)
    (length,) = _UINT32(data, pos)
    pos += 4
    _check_end(data, at, pos + length)
    return LogicalMessage(flags == 1, Lsn(lsn), prefix, data[pos:])


_DECODERS: Final[dict[int, Callable[[bytes, int], Message]]] = {
    ord("B"): _begin,
    ord("C"): _commit,
    ord("O"): _origin,
    ord("R"): _relation,
    ord("Y"): _type,
    ord("I"): _insert,
    ord("U"): _update,
    ord("D"): _delete,
    ord("T"): _truncate,
    ord("M"): _logical_message,
    ord("S"): _stream_start,
    ord("E"): _stream_stop,
    ord("c"): _stream_commit,
    ord("A"): _stream_abort,
}
