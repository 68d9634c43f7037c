"""The server's side of pgoutput: an encoder to test the decoder with, and one sample of everything it can send."""

from __future__ import annotations

import struct

from replicator.model.lsn import Lsn
from replicator.model.row import NULL, UNCHANGED, Field, Row, field
from replicator.pgoutput import (
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
    TextField,
    Truncate,
    TypeMessage,
    Update,
)


def text_field(value: bytes) -> TextField:
    return TextField(field(value))


def encode(message: Message) -> bytes:
    match message:
        case Begin():
            return struct.pack(">cQqI", b"B", message.final_lsn, message.commit_time, message.xid)
        case Commit():
            end = struct.pack(">QQq", message.commit_lsn, message.end_lsn, message.commit_time)
            return b"C" + bytes([message.flags]) + end
        case Origin():
            return struct.pack(">cQ", b"O", message.commit_lsn) + _string(message.name)
        case Relation():
            return _relation(message)
        case TypeMessage():
            name = _namespace(message.namespace) + _string(message.name)
            return struct.pack(">cI", b"Y", message.oid) + name
        case Insert():
            return struct.pack(">cI", b"I", message.relation_oid) + b"N" + _row(message.new)
        case Update():
            head = struct.pack(">cI", b"U", message.relation_oid)
            old = b"" if message.old is None else _old_row(message.old, message.old_is_key)
            return head + old + b"N" + _row(message.new)
        case Delete():
            head = struct.pack(">cI", b"D", message.relation_oid)
            return head + _old_row(message.old, message.old_is_key)
        case Truncate():
            options = message.cascade | message.restart_identity << 1
            oids = message.relation_oids
            return struct.pack(f">ciB{len(oids)}I", b"T", len(oids), options, *oids)
        case LogicalMessage():
            head = struct.pack(">cBQ", b"M", message.transactional, message.lsn)
            return head + _string(message.prefix) + field(message.content)
        case StreamStart():
            return struct.pack(">cIB", b"S", message.xid, message.is_first)
        case StreamStop():
            return b"E"
        case StreamCommit():
            return b"c" + struct.pack(">I", message.xid) + encode(message.commit)[1:]
        case StreamAbort():
            return struct.pack(">cII", b"A", message.xid, message.subxid)


def in_stream(payload: bytes, xid: bytes) -> bytes:
    """The same message as it comes between StreamStart and StreamStop, in the (sub)transaction of four bytes."""
    return payload[:1] + xid + payload[1:] if payload[:1] in b"RYIUDTM" else payload


def _string(text: str) -> bytes:
    return text.encode() + b"\0"


def _namespace(name: str) -> bytes:
    return _string("" if name == "pg_catalog" else name)


def _relation(message: Relation) -> bytes:
    parts = [struct.pack(">cI", b"R", message.oid), _namespace(message.namespace), _string(message.name)]
    parts.append(message.replica_identity.encode() + struct.pack(">h", len(message.columns)))
    for column in message.columns:
        parts += [bytes([column.is_key]), _string(column.name)]
        parts.append(struct.pack(">Ii", column.type_oid, column.typmod))
    return b"".join(parts)


def _old_row(row: Row, is_key: bool) -> bytes:
    return (b"K" if is_key else b"O") + _row(row)


def _row(row: Row) -> bytes:
    return struct.pack(">h", len(row)) + b"".join(map(_column, row))


def _column(value: Field) -> bytes:
    if isinstance(value, TextField):
        return b"t" + value
    if value == NULL:
        return b"n"
    return b"u" if value == UNCHANGED else b"b" + value


ROW: Row = (
    field(b"\x00\x00\x00\x07"),
    field(b""),
    NULL,
    field(b"\xff\xff\xff\xff"),
    text_field(b"=r/postgres"),
    field(bytes(range(256)) * 2),
)
TOASTED: Row = (*ROW[:5], UNCHANGED)
KEY: Row = (ROW[0], NULL, NULL, NULL, NULL, NULL)
COLUMNS = (
    RelationColumn(True, "id", 23, -1),
    RelationColumn(False, "naïve name", 1043, 260),
    RelationColumn(False, "mood", 4_000_000_000, -1),
)
LSN = Lsn.parse("FFFFFFFF/FFFFFFFE")

SAMPLES: tuple[Message, ...] = (
    Begin(LSN, 838_166_400_000_001, 4_294_967_295),
    Begin(Lsn.parse("16/B374D848"), -1, 3),
    Commit(0, LSN, Lsn(LSN + 1), 838_166_400_000_001),
    Origin(Lsn.parse("0/ABC"), "elsewhere"),
    Relation(16_385, "public", "items", "d", COLUMNS),
    Relation(4_294_967_295, "pg_catalog", "Ünï", "f", COLUMNS[:1]),
    Relation(1, "s", "no columns", "n", ()),
    Relation(1, "s", "by index", "i", COLUMNS),
    TypeMessage(16_390, "public", "mood"),
    TypeMessage(16_391, "pg_catalog", ""),
    Insert(16_385, ROW),
    Insert(16_385, ()),
    Update(16_385, None, False, TOASTED),
    Update(16_385, KEY, True, TOASTED),
    Update(16_385, ROW, False, TOASTED),
    Delete(16_385, KEY, True),
    Delete(16_385, ROW, False),
    Truncate((), False, False),
    Truncate((16_385,), False, True),
    Truncate((16_385, 4_294_967_295), True, False),
    Truncate((1, 2, 3), True, True),
    LogicalMessage(True, LSN, "replicator", b"fence\0\xff"),
    LogicalMessage(False, Lsn(0), "", b""),
    StreamStart(4_294_967_295, True),
    StreamStart(1, False),
    StreamStop(),
    StreamCommit(753, Commit(0, LSN, Lsn(LSN + 1), 838_166_400_000_001)),
    StreamAbort(753, 4_294_967_295),
)
