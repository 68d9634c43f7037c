"""pgoutput, the server's logical replication format, and its framing: bytes in, values out, no I/O."""

from replicator.pgoutput.decoder import decode
from replicator.pgoutput.framing import (
    XLOG_DATA,
    XLOG_DATA_HEADER_BYTES,
    PrimaryKeepalive,
    XLogData,
    parse_frame,
    standby_status_update,
    unix_seconds,
    wire_microseconds,
)
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
    Truncate,
    TypeMessage,
    Update,
)
from replicator.pgoutput.tuples import TextField

__all__ = [
    "XLOG_DATA",
    "XLOG_DATA_HEADER_BYTES",
    "Begin",
    "Commit",
    "Delete",
    "Insert",
    "LogicalMessage",
    "Message",
    "Origin",
    "PrimaryKeepalive",
    "Relation",
    "RelationColumn",
    "TextField",
    "Truncate",
    "TypeMessage",
    "Update",
    "XLogData",
    "decode",
    "parse_frame",
    "standby_status_update",
    "unix_seconds",
    "wire_microseconds",
]
