"""COPY in binary format at the speed of libpq: no Python object per value.

Below psycopg's ``Copy`` objects on purpose: their per-row generator costs more than the row itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from psycopg import errors, pq, sql
from psycopg.errors import error_from_result

from replicator.model.row import COPY_HEADER, COPY_TRAILER
from replicator.postgres.session import Connection, wait_readable

_CHUNK_BYTES = 1 << 16


def copy_out(conn: Connection, statement: sql.Composable) -> Iterator[bytes]:
    """The rows of ``COPY … TO STDOUT (FORMAT binary)``: column count and fields, header and trailer taken off."""
    pgconn = conn.pgconn
    _start(conn, statement.as_bytes(conn), pq.ExecStatus.COPY_OUT)
    get = pgconn.get_copy_data
    first = True
    while True:
        length, data = get(1)
        if length > 0:
            row = bytes(data)
            if first:
                # The header travels in front of the first row, or of the trailer where there is none.
                row, first = row[len(COPY_HEADER) :], False
            if row and row != COPY_TRAILER:
                yield row
        elif length == 0:
            wait_readable(conn)
            pgconn.consume_input()
        else:
            break
    _finish(conn)


class CopyIn:
    """``COPY … FROM STDIN (FORMAT binary)``: `write` rows, then `finish`. On an error, roll back the transaction."""

    def __init__(self, conn: Connection, statement: sql.Composable) -> None:
        """Starts at once, inside the connection's current transaction."""
        self._conn, self._pgconn = conn, conn.pgconn
        _start(conn, statement.as_bytes(conn), pq.ExecStatus.COPY_IN)
        self._pgconn.nonblocking = 1
        self._parts: list[bytes] = [COPY_HEADER]
        self._size = 0
        self.bytes_written = 0

    def write(self, row: bytes) -> None:
        """Add one row, or several joined."""
        self._parts.append(row)
        self._size += len(row)
        if self._size >= _CHUNK_BYTES:
            self._put()

    def finish(self, meanwhile: Callable[[], None] = lambda: None) -> int:
        """End the COPY; the number of rows that the server took in.

        Args:
            meanwhile: called while the server still works on what it was sent.

        Raises:
            psycopg.Error: the server refused a row.
        """
        self._parts.append(COPY_TRAILER)
        self._put()
        while self._pgconn.put_copy_end() == 0:
            _wait_writable(self._conn)
        self._flush()
        meanwhile()
        self._pgconn.nonblocking = 0
        return _finish(self._conn)

    def cancel(self) -> None:
        """Give up: the server discards what it got and fails the statement."""
        while self._pgconn.put_copy_end(b"cancelled") == 0:
            _wait_writable(self._conn)
        _drain(self._conn)
        self._pgconn.nonblocking = 0

    def _put(self) -> None:
        data = b"".join(self._parts)
        self._parts, self._size = [], 0
        while self._pgconn.put_copy_data(data) == 0:
            _wait_writable(self._conn)
        self.bytes_written += len(data)
        self._flush()

    def _flush(self) -> None:
        while self._pgconn.flush() == 1:
            _wait_writable(self._conn)


def run_simple(conn: Connection, statement: bytes) -> None:
    """Run one statement without a result, below psycopg, which takes note of some.

    Raises:
        psycopg.Error: as the server says.
    """
    conn.pgconn.send_query(statement)
    result = next_result(conn)
    _drain(conn)
    if result is None:
        raise errors.OperationalError("the connection was lost")
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise error_from_result(result)


def _wait_writable(conn: Connection) -> None:
    if wait_readable(conn, or_writable=True):
        # The server may be telling why it stopped reading; libpq must take that in, or both sides wait.
        conn.pgconn.consume_input()


def _start(conn: Connection, statement: bytes, expected: pq.ExecStatus) -> None:
    conn.pgconn.send_query(statement)
    result = next_result(conn)
    if result is None or result.status != expected:
        if result is None:
            raise errors.OperationalError("the connection was lost before COPY started")
        _drain(conn)
        raise error_from_result(result)


def _finish(conn: Connection) -> int:
    result = next_result(conn)
    _drain(conn)
    if result is None:
        raise errors.OperationalError("the connection was lost during COPY")
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise error_from_result(result)
    return int(result.command_tuples or 0)


def next_result(conn: Connection) -> pq.abc.PGresult | None:
    """Waits outside of libpq, which would hold the interpreter lock: other threads go on and signals are handled."""
    pgconn = conn.pgconn
    while pgconn.flush() == 1:
        _wait_writable(conn)
    while pgconn.is_busy():
        wait_readable(conn)
        pgconn.consume_input()
    return pgconn.get_result()


def _drain(conn: Connection) -> None:
    while next_result(conn) is not None:
        pass
