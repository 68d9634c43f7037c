"""What lies around pgoutput: the CopyData payloads of the streaming replication protocol.

Times are microseconds since 2000-01-01 UTC unless a name says otherwise.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from replicator.errors import ProtocolError
from replicator.model.lsn import Lsn

XLOG_DATA: Final = ord("w")
XLOG_DATA_HEADER_BYTES: Final = 25  # in front of the message

_XLOG_DATA: Final = struct.Struct(">xQQq")
_KEEPALIVE: Final = struct.Struct(">xQqB")
_STATUS_UPDATE: Final = struct.Struct(">cQQQqB")

_EPOCH_UNIX_S: Final = 946_684_800  # 2000-01-01 UTC
_US_PER_S: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class XLogData:
    """``w``: one pgoutput message in ``payload``. The stream needs nothing else of it, and so never makes one.

    ``wal_start`` is the message's place in the WAL, or 0 if it only prepares the next one (Relation, Type).
    ``wal_end`` repeats it: logical replication does not say here how far the server has got.
    """

    wal_start: Lsn
    wal_end: Lsn
    send_time: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class PrimaryKeepalive:
    """``k``: everything before ``wal_end`` has been sent; ``reply_requested``: answer now or be cut off."""

    wal_end: Lsn
    send_time: int
    reply_requested: bool


def parse_frame(data: bytes) -> XLogData | PrimaryKeepalive:
    """Read one CopyData payload that the server sent in replication mode.

    Raises:
        ProtocolError: unknown type byte, short payload, bytes left over.

    Source: PostgreSQL docs, "Streaming Replication Protocol".
    """
    try:
        kind = data[0]
        if kind == XLOG_DATA:
            wal_start, wal_end, send_time = _XLOG_DATA.unpack_from(data)
            return XLogData(Lsn(wal_start), Lsn(wal_end), send_time, data[XLOG_DATA_HEADER_BYTES:])
        if kind == 0x6B:  # k
            return _keepalive(data)
    except (IndexError, struct.error) as exc:
        raise ProtocolError(f"replication frame {data[:1]!r} of {len(data)} bytes is cut short") from exc
    raise ProtocolError(f"replication frame of {len(data)} bytes has unknown type {data[:1]!r}")


def _keepalive(data: bytes) -> PrimaryKeepalive:
    wal_end, send_time, reply_requested = _KEEPALIVE.unpack_from(data)
    if len(data) != _KEEPALIVE.size:
        raise ProtocolError(f"keepalive of {len(data)} bytes has bytes left over")
    if reply_requested > 1:
        raise ProtocolError(f"keepalive has reply flag {reply_requested:#04x}, neither 0 nor 1")
    return PrimaryKeepalive(Lsn(wal_end), send_time, reply_requested == 1)


def standby_status_update(
    *, written: Lsn, flushed: Lsn, applied: Lsn, clock_us: int, reply_requested: bool = False
) -> bytes:
    """The CopyData payload ``r`` that tells the server how far we are.

    Args:
        written: received up to here, exclusive.
        flushed: safe on the target up to here; the server may drop WAL before it.
        applied: visible on the target up to here.
        clock_us: our clock, in microseconds since 2000-01-01 UTC.
        reply_requested: ask for a keepalive in return.
    """
    return _STATUS_UPDATE.pack(b"r", written, flushed, applied, clock_us, reply_requested)


def unix_seconds(time_us: int) -> float:
    """Seconds since 1970-01-01 UTC of a time on the wire."""
    return time_us / _US_PER_S + _EPOCH_UNIX_S


def wire_microseconds(unix_s: float) -> int:
    """Microseconds since 2000-01-01 UTC, the wire's time, of seconds since 1970-01-01 UTC."""
    return round((unix_s - _EPOCH_UNIX_S) * _US_PER_S)
