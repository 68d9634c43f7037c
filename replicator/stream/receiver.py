"""The replication session: CopyBoth bytes in, routed batches out, feedback on a timer of its own."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from typing import LiteralString, cast

import psycopg
from psycopg import errors, pq, sql
from psycopg.errors import error_from_result

from replicator import metrics
from replicator.errors import NEW_SNAPSHOT, SlotLost, TransientError
from replicator.failpoints import failpoint
from replicator.model.lsn import Lsn
from replicator.pgoutput import (
    XLOG_DATA,
    XLOG_DATA_HEADER_BYTES,
    PrimaryKeepalive,
    XLogData,
    decode,
    parse_frame,
    standby_status_update,
    wire_microseconds,
)
from replicator.postgres.connection import Connection, translated
from replicator.postgres.session import Silence, wait_readable
from replicator.stream.assembler import Assembler
from replicator.stream.batch import Batch
from replicator.stream.inbox import Inbox

FEEDBACK_INTERVAL_S = 1.0
_TAKE_S = 0.2  # how long a stop may go unnoticed while nothing comes in
_BURST = 100  # messages between two looks at the clock and at whoever wants something of us

# From there on a transaction comes while it is in progress, instead of when it has committed. The server's own limit is
# about its memory and disk; this one is below it, about how long a target waits.
_SEND_EARLY = """
SELECT pg_catalog.set_config(name, '8MB', false) FROM pg_catalog.pg_settings
WHERE name = 'logical_decoding_work_mem' AND setting::bigint > 8192
"""

_PREREQUISITE_MISSING = "55000"  # object_not_in_prerequisite_state


class Receiver:
    """Reads one slot from ``start`` on. Runs in a thread of its own until `stop`, or until the stream breaks.

    Feedback goes out on its own timer, also while the inbox is full: the server must neither time out nor be told
    more than the target has committed.
    """

    def __init__(
        self,
        conn: Connection,
        *,
        slot: str,
        publication: str,
        start: Lsn,
        assembler: Assembler,
        inbox: Inbox,
        committed: Callable[[], Lsn],
        before_transaction: Callable[[], None],
        ahead: bool,
    ) -> None:
        """``committed``: the checkpoint; ``before_transaction`` is called in this thread between transactions;
        ``ahead``: take large transactions while they are in progress.
        """
        self._conn = conn
        self._slot, self._publication, self._start = slot, publication, start
        self._assembler, self._inbox, self._committed = assembler, inbox, committed
        self._before_transaction = before_transaction
        self._ahead = ahead
        self._received = start
        self._next_feedback = 0.0
        self._silence = Silence(conn)
        self._lost: list[SlotLost] = []
        conn.add_notice_handler(self._heed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)

    def start(self) -> None:
        """Start replication; an error of the server's comes out here.

        Raises:
            SlotLost, TransientError, ConfigError, …: the server will not stream.
        """
        with translated("source"):
            start_replication(self._conn, self._slot, self._publication, self._start, ahead=self._ahead)
        self._thread.start()

    def stop(self) -> None:
        """End the stream after a last feedback. Returns when the session is closed."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._conn.close()

    def _run(self) -> None:
        try:
            with translated("source"):
                try:
                    self._receive()
                except errors.UndefinedObject as exc:  # the publication: nothing else is looked up by name
                    raise self._publication_lost() from exc
                finally:
                    self._hand_over(self._assembler.take())  # what came whole is applied, whatever came behind it
            self._inbox.close()
        except BaseException as exc:
            self._inbox.close(exc)

    def _receive(self) -> None:
        pgconn = self._conn.pgconn
        # A hot loop: one turn per message, so that names are bound once and nothing is called that need not be.
        get, assembler, inbox = pgconn.get_copy_data, self._assembler, self._inbox
        feed, lost, silence = assembler.feed, self._lost, self._silence
        talking = False
        now = time.monotonic
        while not self._stop.is_set():
            if now() >= self._next_feedback:
                self._send_feedback()
            if inbox.is_full and not inbox.wait_for_room(FEEDBACK_INTERVAL_S / 4):
                silence.heard()  # while nobody listens, nobody knows
                continue
            length = 0
            for _ in range(_BURST):
                length, data = get(1)
                if lost:
                    raise lost[0]
                if length <= 0:
                    break
                talking = True
                frame = bytes(data)
                if frame[0] == XLOG_DATA:
                    batch = feed(decode(frame, XLOG_DATA_HEADER_BYTES, assembler.in_stream), length)
                    if batch is not None:
                        self._hand_over(batch)
                        break  # the inbox may be full
                else:
                    self._keepalive(parse_frame(frame))
            if length < 0:
                self._raise_end(pgconn)
            if length == 0:
                # Now, and not when there is more of it: a lone transaction must not wait.
                self._hand_over(assembler.take())
                self._before_transaction_if_idle()
                wait_s = max(0.0, min(self._next_feedback - now(), FEEDBACK_INTERVAL_S))
                if select.select([pgconn.socket], [], [], min(wait_s, _TAKE_S))[0]:
                    pgconn.consume_input()
                    talking = True
                if talking:
                    silence.heard()
                    talking = False
                else:
                    silence.check()
        self._send_feedback()

    def _hand_over(self, batch: Batch | None) -> None:
        if batch is not None:
            self._received = max(self._received, batch.end_lsn)
            self._inbox.put(batch)

    def _heed(self, notice: psycopg.errors.Diagnostic) -> None:
        """A warning of the server's, in its place between the changes.

        From server 18 on, decoding skips changes from a time without the publication, and only warns of it.
        """
        if notice.sqlstate == _PREREQUISITE_MISSING:
            self._lost.append(self._publication_lost())

    def _publication_lost(self) -> SlotLost:
        return SlotLost(
            f"publication {self._publication} was not there when changes were written: they are lost to the stream",
            hint=f"{NEW_SNAPSHOT}; creating the publication again is not enough",
        )

    def _before_transaction_if_idle(self) -> None:
        if not self._assembler.in_transaction:
            self._before_transaction()

    def _keepalive(self, keepalive: PrimaryKeepalive | XLogData) -> None:
        assert isinstance(keepalive, PrimaryKeepalive)
        position = self._assembler.keepalive(keepalive.wal_end)
        if position is not None:
            self._received = max(self._received, position.lsn)
            self._inbox.put(position)
        if keepalive.reply_requested:
            self._send_feedback()

    def _send_feedback(self) -> None:
        """Received is only a courtesy; flushed lets the server drop WAL, so it is the committed checkpoint."""
        committed = self._committed()
        metrics.RECEIVED_LSN_BYTES.set(self._received)
        update = standby_status_update(
            written=max(self._received, committed),
            flushed=committed,
            applied=committed,
            clock_us=wire_microseconds(time.time()),
            # A server that is there answers at once, unless it is busy decoding.
            reply_requested=self._silence.is_suspicious,
        )
        failpoint("before_feedback")
        pgconn = self._conn.pgconn
        pgconn.put_copy_data(update)
        pgconn.flush()  # what does not fit the socket now leaves with the next one
        failpoint("after_feedback")
        self._next_feedback = time.monotonic() + FEEDBACK_INTERVAL_S

    @staticmethod
    def _raise_end(pgconn: pq.abc.PGconn) -> None:
        result = pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(result)
        raise TransientError("source: the server ended the stream")


def start_replication(conn: Connection, slot: str, publication: str, start: Lsn, *, ahead: bool) -> None:
    """Enter CopyBoth mode; ``ahead``: large transactions come in pieces while they are in progress."""
    if ahead:
        conn.execute(_SEND_EARLY)
    # Strings in the statement, not parameters: a replication session takes none.
    statement = sql.SQL(
        "START_REPLICATION SLOT {} LOGICAL {} "
        "(proto_version '2', publication_names {}, binary 'true', messages 'true', streaming {})"
    ).format(
        sql.Identifier(slot), sql.SQL(str(start)), _string(_quoted(publication)), _string("on" if ahead else "off")
    )
    pgconn = conn.pgconn
    pgconn.send_query(statement.as_bytes(conn))
    while pgconn.is_busy():
        wait_readable(conn)
        pgconn.consume_input()
    result = pgconn.get_result()
    if result is None:
        raise psycopg.OperationalError("the connection was lost")
    if result.status != pq.ExecStatus.COPY_BOTH:
        raise error_from_result(result)
    pgconn.nonblocking = 1


def _string(text: str) -> sql.SQL:
    """A string of the replication grammar. It knows no ``E'…'``, which `sql.Literal` makes of a backslash."""
    return sql.SQL(cast(LiteralString, "'" + text.replace("'", "''") + "'"))  # type: ignore[redundant-cast]


def _quoted(identifier: str) -> str:
    """publication_names is a list of identifiers inside a literal."""
    return '"' + identifier.replace('"', '""') + '"'
