"""What real servers send: each message type, and the bytes of rows against COPY."""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import pq, sql

from replicator.model.lsn import Lsn
from replicator.model.row import NULL, UNCHANGED, field
from replicator.pgoutput import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    PrimaryKeepalive,
    Relation,
    TextField,
    Truncate,
    TypeMessage,
    Update,
    XLogData,
    decode,
    parse_frame,
    standby_status_update,
    unix_seconds,
    wire_microseconds,
)
from tests.conftest import ALL_MAJORS
from tests.pgoutput.wire import encode

Connection = psycopg.Connection[Any]

pytestmark = pytest.mark.parametrize("database", ALL_MAJORS, indirect=True)

OPTIONS = {"proto_version": "1", "publication_names": "p", "binary": "true", "messages": "true"}
ORIGIN_TIME = datetime(2020, 2, 29, 1, 2, 3, 456789, tzinfo=UTC)
BODY = b"x" * 5000  # EXTERNAL storage: out of line, not compressed

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'fine');
CREATE TABLE item (id int PRIMARY KEY, mood mood, rights aclitem, body text, price numeric(8,2));
ALTER TABLE item ALTER body SET STORAGE EXTERNAL;
CREATE TABLE part (item int REFERENCES item, number serial);
ALTER TABLE part REPLICA IDENTITY FULL;
CREATE TABLE tag (name text NOT NULL, colour text);
CREATE UNIQUE INDEX tag_name ON tag (name);
ALTER TABLE tag REPLICA IDENTITY USING INDEX tag_name;
CREATE TABLE note (text text);
ALTER TABLE note REPLICA IDENTITY NOTHING;
CREATE TABLE kinds (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), a bool, b int2, c int8, d float8, e numeric, f text, g varchar(9),
    h char(4), i timestamptz, j timestamp, k date, l interval, m jsonb, n json, o bytea, p int[], q inet, r mood,
    s mood[], t tstzrange, u text, v bit(3)
);
CREATE PUBLICATION p FOR ALL TABLES;
"""


@pytest.fixture
def conn(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(SCHEMA)
        conn.execute("SELECT pg_create_logical_replication_slot(current_database(), 'pgoutput')")
        yield conn


def peek(conn: Connection) -> list[bytes]:
    options = [text for option in OPTIONS.items() for text in option]
    rows = conn.execute(
        sql.SQL("SELECT data FROM pg_logical_slot_peek_binary_changes(current_database(), NULL, NULL, {})").format(
            sql.SQL(", ").join(map(sql.Literal, options))
        ),
        binary=True,
    )
    return [data for (data,) in rows]


def changes_of(conn: Connection, *statements: str) -> list[Message]:
    """Every message that one transaction of these statements brings; each encodes to the bytes it came from."""
    before = len(peek(conn))
    with conn.transaction():
        for statement in statements:
            conn.execute(statement)
    payloads = peek(conn)[before:]
    messages = [decode(payload) for payload in payloads]
    assert [encode(message) for message in messages] == payloads
    return messages


def without_metadata(messages: list[Message]) -> list[Message]:
    return [message for message in messages if not isinstance(message, Relation | TypeMessage)]


def test_begin_and_commit_name_the_same_transaction(conn):
    with conn.transaction():
        conn.execute("INSERT INTO note VALUES ('a')")
        xid, now = conn.execute("SELECT pg_current_xact_id()::text::int8, extract(epoch FROM now())::float8").fetchone()
    end = Lsn.parse(conn.execute("SELECT pg_current_wal_lsn()::text").fetchone()[0])
    begin, *_, commit = [decode(payload) for payload in peek(conn)]
    assert isinstance(begin, Begin)
    assert isinstance(commit, Commit)
    assert begin.xid == xid & 0xFFFFFFFF
    assert begin.final_lsn == commit.commit_lsn < commit.end_lsn <= end
    assert begin.commit_time == commit.commit_time
    assert 0 <= unix_seconds(begin.commit_time) - now < 60


def test_relation_and_types(conn):
    messages = changes_of(conn, "INSERT INTO item VALUES (7, 'fine', '=r/postgres', 'b', 1.5)")
    oids = dict(conn.execute("SELECT relname, oid FROM pg_class WHERE relname IN ('item', 'tag', 'note')").fetchall())
    (mood,) = conn.execute("SELECT 'mood'::regtype::oid").fetchone()
    _, mood_type, relation, insert, _ = messages
    assert mood_type == TypeMessage(mood, "public", "mood")
    assert isinstance(relation, Relation)
    assert (relation.oid, relation.namespace, relation.name) == (oids["item"], "public", "item")
    assert relation.replica_identity == "d"
    assert [(c.is_key, c.name, c.type_oid, c.typmod) for c in relation.columns] == [
        (True, "id", 23, -1), (False, "mood", mood, -1), (False, "rights", 1033, -1), (False, "body", 25, -1),
        (False, "price", 1700, (8 << 16 | 2) + 4),
    ]  # fmt: skip
    assert isinstance(insert, Insert)
    assert insert.relation_oid == oids["item"]
    assert insert.new[:4] == (field(struct.pack(">i", 7)), field(b"fine"), field(b"=r/postgres"), field(b"b"))
    # aclitem has no binary send function, everything else here has one.
    assert [type(value) is TextField for value in insert.new] == [False, False, True, False, False]

    identities = []
    for insert_row in ("INSERT INTO part VALUES (7)", "INSERT INTO tag VALUES ('x')", "INSERT INTO note VALUES ('x')"):
        _, relation, _, _ = changes_of(conn, insert_row)
        assert isinstance(relation, Relation)
        identities.append((relation.replica_identity, [column.is_key for column in relation.columns]))
    assert identities == [("f", [True, True]), ("i", [True, False]), ("n", [False])]


def test_relation_comes_again_after_ddl(conn):
    changes_of(conn, "INSERT INTO note VALUES ('a')")
    messages = changes_of(conn, "ALTER TABLE note ADD stars int", "INSERT INTO note VALUES ('b', 5)")
    _, relation, insert, _ = messages
    assert isinstance(relation, Relation)
    assert [column.name for column in relation.columns] == ["text", "stars"]
    assert isinstance(insert, Insert)
    assert insert.new == (field(b"b"), field(struct.pack(">i", 5)))


def test_updates_and_deletes(conn):
    def key(number: int) -> bytes:
        return field(struct.pack(">i", number))

    changes_of(
        conn,
        f"INSERT INTO item VALUES (1, NULL, NULL, '{BODY.decode()}')",
        "INSERT INTO part VALUES (1, 10)",
        "INSERT INTO tag VALUES ('t', 'red')",
    )
    item, part, tag = (row[0] for row in conn.execute(
        "SELECT oid FROM pg_class WHERE relname IN ('item', 'part', 'tag') ORDER BY relname"
    ))  # fmt: skip

    def update(statement: str) -> Update:
        _, *middle, _ = without_metadata(changes_of(conn, statement))
        (message,) = middle
        assert isinstance(message, Update)
        return message

    def delete(statement: str) -> Delete:
        _, message, _ = without_metadata(changes_of(conn, statement))
        assert isinstance(message, Delete)
        return message

    fine = field(b"fine")
    assert update("UPDATE item SET mood = 'fine'") == Update(item, None, False, (key(1), fine, NULL, UNCHANGED, NULL))
    changed = update("UPDATE item SET body = body || 'y'")
    assert changed == Update(item, None, False, (key(1), fine, NULL, field(BODY + b"y"), NULL))

    assert update("UPDATE part SET number = 11") == Update(part, (key(1), key(10)), False, (key(1), key(11)))
    assert delete("DELETE FROM part") == Delete(part, (key(1), key(11)), False)

    assert update("UPDATE item SET id = 2") == Update(
        item, (key(1), NULL, NULL, NULL, NULL), True, (key(2), fine, NULL, UNCHANGED, NULL)
    )
    assert delete("DELETE FROM item") == Delete(item, (key(2), NULL, NULL, NULL, NULL), True)

    assert update("UPDATE tag SET colour = NULL") == Update(tag, None, False, (field(b"t"), NULL))
    assert update("UPDATE tag SET name = 'u'") == Update(tag, (field(b"t"), NULL), True, (field(b"u"), NULL))
    assert delete("DELETE FROM tag") == Delete(tag, (field(b"u"), NULL), True)


def test_replica_identity_full_sends_the_old_value_of_what_stays_unchanged(conn):
    conn.execute("ALTER TABLE item REPLICA IDENTITY FULL")
    changes_of(conn, f"INSERT INTO item VALUES (1, NULL, NULL, '{BODY.decode()}')")
    (update,) = [m for m in changes_of(conn, "UPDATE item SET mood = 'sad'") if isinstance(m, Update)]
    assert update.old is not None
    assert not update.old_is_key
    assert (update.old[3], update.new[3]) == (field(BODY), UNCHANGED)


@pytest.mark.parametrize(
    ("statement", "tables", "cascade", "restart_identity"),
    [
        ("TRUNCATE note", {"note"}, False, False),
        ("TRUNCATE item CASCADE", {"item", "part"}, True, False),
        ("TRUNCATE part RESTART IDENTITY", {"part"}, False, True),
        ("TRUNCATE item, note RESTART IDENTITY CASCADE", {"item", "part", "note"}, True, True),
    ],
)
def test_truncate(conn, statement, tables, cascade, restart_identity):
    _, truncate, _ = without_metadata(changes_of(conn, statement))
    assert isinstance(truncate, Truncate)
    names = conn.execute("SELECT relname FROM pg_class WHERE oid = ANY(%s)", [list(truncate.relation_oids)]).fetchall()
    assert {name for (name,) in names} == tables
    assert len(truncate.relation_oids) == len(tables)
    assert (truncate.cascade, truncate.restart_identity) == (cascade, restart_identity)


def test_logical_messages(conn):
    begin, inside, commit = changes_of(conn, r"SELECT pg_logical_emit_message(true, 'replicator', '\x00ff'::bytea)")
    assert isinstance(begin, Begin)
    assert isinstance(inside, LogicalMessage)
    assert isinstance(commit, Commit)
    assert (inside.transactional, inside.prefix, inside.content) == (True, "replicator", b"\0\xff")
    assert inside.lsn <= commit.commit_lsn

    (lsn,) = conn.execute("SELECT pg_logical_emit_message(false, 'ünï', '')::text").fetchone()
    conn.execute("INSERT INTO note VALUES ('a')")  # the message alone is not flushed, and so not seen
    (outside,) = [m for m in map(decode, peek(conn)[3:]) if isinstance(m, LogicalMessage)]
    assert outside == LogicalMessage(False, Lsn.parse(lsn), "ünï", b"")


def test_origin(conn, database):
    name = f"{conn.info.dbname}-elsewhere"
    conn.execute("SELECT pg_replication_origin_create(%s)", [name])
    try:
        with psycopg.connect(database, autocommit=True) as session:
            session.execute("SELECT pg_replication_origin_session_setup(%s)", [name])
            with session.transaction():
                session.execute("SELECT pg_replication_origin_xact_setup('16/B374D848', %s)", [ORIGIN_TIME])
                session.execute("INSERT INTO note VALUES ('from elsewhere')")
            session.execute("SELECT pg_replication_origin_session_reset()")  # closing takes the server a moment
        payloads = peek(conn)
    finally:
        conn.execute("SELECT pg_replication_origin_drop(%s)", [name])
    begin, origin, _, insert, commit = [decode(payload) for payload in payloads]
    assert isinstance(begin, Begin)
    assert origin == Origin(Lsn.parse("16/B374D848"), name)
    assert isinstance(insert, Insert)
    assert isinstance(commit, Commit)
    # A replicated transaction keeps the time at which it was first committed: the clock of the wire, exactly.
    assert begin.commit_time == wire_microseconds(ORIGIN_TIME.timestamp())
    assert unix_seconds(begin.commit_time) == ORIGIN_TIME.timestamp()


def test_rows_are_copy_rows(conn):
    """COPY … (FORMAT binary) of the same rows is the oracle: field by field the same bytes."""
    messages = changes_of(
        conn,
        """INSERT INTO kinds SELECT gen_random_uuid(), g % 2 = 0, g, g * -7000000000, g / 3.0, g ^ 33.3, repeat('é', g),
           'v' || g, 'h', now() - g * interval '1 day', 'epoch', current_date, '1 mon 2 d', '{"a": [1, null]}', '[]',
           '\\x00ff', ARRAY[g, NULL], '10.0.0.0/8', 'sad', '{fine,sad}', tstzrange(now(), NULL),
           repeat('z', g * 999), '101'
           FROM generate_series(1, 20) g""",
        "INSERT INTO kinds DEFAULT VALUES",
    )
    rows = [message.new for message in messages if isinstance(message, Insert)]
    assert len(rows) == 21
    assert not any(isinstance(value, TextField) for row in rows for value in row)
    with conn.cursor().copy("COPY kinds TO STDOUT (FORMAT binary)") as copy:
        copied = b"".join(bytes(block) for block in copy)
    header = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    assert copied == header + b"".join(struct.pack(">h", len(row)) + b"".join(row) for row in rows) + b"\xff\xff"


def test_frames_of_a_walsender(conn, database):
    """Over the replication protocol: the same payloads, keepalives, and the server takes our status update."""
    changes_of(conn, "INSERT INTO note VALUES ('a')", "INSERT INTO item VALUES (1)", "DELETE FROM item")
    payloads = peek(conn)
    options = ", ".join(f"{name} '{value}'" for name, value in OPTIONS.items())
    command = f'START_REPLICATION SLOT "{conn.info.dbname}" LOGICAL 0/0 ({options})'
    # closing: leaving a connection in the usual way sends COMMIT, which the running copy does not allow.
    with closing(psycopg.connect(database, replication="database", autocommit=True)) as walsender:
        assert walsender.pgconn.exec_(command.encode()).status == pq.ExecStatus.COPY_BOTH
        frames: list[XLogData] = []
        while len(frames) < len(payloads):
            frame = next_frame(walsender)
            if isinstance(frame, XLogData):
                frames.append(frame)
        assert [frame.payload for frame in frames] == payloads
        commit = decode(frames[-1].payload)
        assert isinstance(commit, Commit)
        for frame in frames:
            assert frame.wal_start == frame.wal_end
            assert abs(unix_seconds(frame.send_time) - time.time()) < 60
            prepares_next = isinstance(decode(frame.payload), Relation | TypeMessage)
            assert (frame.wal_start == 0) == prepares_next

        ask = standby_status_update(
            written=Lsn(commit.end_lsn + 2), flushed=commit.end_lsn, applied=Lsn(commit.end_lsn - 1),
            clock_us=wire_microseconds(time.time()), reply_requested=True,
        )  # fmt: skip
        walsender.pgconn.put_copy_data(ask)
        walsender.pgconn.flush()
        frame = next_frame(walsender)
        while not (isinstance(frame, PrimaryKeepalive) and not frame.reply_requested):
            frame = next_frame(walsender)
        assert frame.wal_end >= commit.commit_lsn
        assert abs(unix_seconds(frame.send_time) - time.time()) < 60
        end = commit.end_lsn
        expected = (str(Lsn(end + 2)), str(end), str(Lsn(end - 1)), str(end), True)
        deadline = time.monotonic() + 30
        while (positions := positions_of(conn)) != expected and time.monotonic() < deadline:
            time.sleep(0.02)  # the keepalive may be one sent before our update was read
        assert positions == expected


def positions_of(conn: Connection) -> tuple[Any, ...] | None:
    """What the server took from the walsender's last status update, and whether its clock was right."""
    return conn.execute(
        """SELECT write_lsn::text, flush_lsn::text, replay_lsn::text, confirmed_flush_lsn::text,
                  abs(extract(epoch FROM now() - reply_time)) < 60
           FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid
           WHERE slot_name = current_database()"""
    ).fetchone()


def next_frame(walsender: Connection) -> XLogData | PrimaryKeepalive:
    while True:
        size, data = walsender.pgconn.get_copy_data(1)
        if size > 0:
            return parse_frame(bytes(data))
        assert size == 0, "the server ended the stream"
        ready, _, _ = select.select([walsender.pgconn.socket], [], [], 30)
        assert ready, "no frame within 30 s"
        walsender.pgconn.consume_input()
