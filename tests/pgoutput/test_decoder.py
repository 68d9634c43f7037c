"""The decoder: every message whole, cut and mutilated."""

from __future__ import annotations

import random
import struct
import tracemalloc
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import ProtocolError
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
    decode,
)
from tests.pgoutput.fuzz_decoder import mutate
from tests.pgoutput.wire import COLUMNS, SAMPLES, encode, in_stream, text_field

each_sample = pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)


def test_samples_hold_every_message_type():
    assert {type(message) for message in SAMPLES} == set(get_args(Message))


@each_sample
def test_whole_message_decodes_to_what_was_encoded(message):
    decoded = decode(encode(message))
    assert type(decoded) is type(message)
    assert decoded == message


@each_sample
def test_message_cut_at_any_byte_is_refused(message):
    payload = encode(message)
    for length in range(len(payload)):
        with pytest.raises(ProtocolError):
            decode(payload[:length])


@each_sample
@pytest.mark.parametrize("xid", [b"\0\0\0\1", b"\xff" * 4, b"KNOT"])
def test_in_a_stream_changes_have_a_transaction_id_behind_their_type(message, xid):
    payload = in_stream(encode(message), xid)
    assert decode(payload, 0, True) == message
    assert decode(b"header" + payload, 6, True) == message
    for length in range(len(payload)):
        with pytest.raises(ProtocolError):
            decode(payload[:length], 0, True)
    with pytest.raises(ProtocolError):
        decode(payload + b"\0", 0, True)


@each_sample
@pytest.mark.parametrize("trailer", [b"\0", b"n", b"N", b"\0\0\0\0", b"B"])
def test_bytes_left_over_are_refused(message, trailer):
    with pytest.raises(ProtocolError):
        decode(encode(message) + trailer)


BYTES = [
    (b"B\0\0\0\x16\xb3\x74\xd8\x48\0\0\0\0\0\0\0\x05\0\0\x02\xf1", Begin(Lsn.parse("16/B374D848"), 5, 753)),
    (b"C\0" + bytes(7) + b"\x01" + bytes(7) + b"\x02" + b"\xff" * 8, Commit(0, Lsn(1), Lsn(2), -1)),
    (b"O" + bytes(7) + b"\x09node\0", Origin(Lsn(9), "node")),
    (
        b"R\0\0\x40\x01public\0t\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0v\0\0\0\x04\x13\0\0\0\x0e",
        Relation(
            16385,
            "public",
            "t",
            "d",
            (RelationColumn(True, "id", 23, -1), RelationColumn(False, "v", 1043, 14)),
        ),
    ),
    (b"Y\0\0\x40\x02\0mood\0", TypeMessage(16386, "pg_catalog", "mood")),
    (
        b"I\0\0\x40\x01N\0\x03b\0\0\0\x04\0\0\0\x07nt\0\0\0\x02hi",
        Insert(16385, (b"\0\0\0\x04\0\0\0\x07", NULL, TextField(b"\0\0\0\x02hi"))),
    ),
    (b"U\0\0\x40\x01N\0\x02b\0\0\0\x01xu", Update(16385, None, False, (b"\0\0\0\x01x", UNCHANGED))),
    (b"U\0\0\x40\x01K\0\x01b\0\0\0\x01xN\0\x01n", Update(16385, (b"\0\0\0\x01x",), True, (NULL,))),
    (b"U\0\0\x40\x01O\0\x01nN\0\x01n", Update(16385, (NULL,), False, (NULL,))),
    (b"D\0\0\x40\x01K\0\x01b\0\0\0\0", Delete(16385, (b"\0\0\0\0",), True)),
    (b"D\0\0\x40\x01O\0\x01n", Delete(16385, (NULL,), False)),
    (b"T\0\0\0\x01\x01\0\0\x40\x01", Truncate((16385,), True, False)),
    (b"T\0\0\0\x02\x02\0\0\x40\x01\0\0\x40\x02", Truncate((16385, 16386), False, True)),
    (b"M\x01" + bytes(7) + b"\x03p\0\0\0\0\x02\0\xff", LogicalMessage(True, Lsn(3), "p", b"\0\xff")),
    (b"S\0\0\x02\xf1\x01", StreamStart(753, True)),
    (b"S\0\0\x02\xf1\0", StreamStart(753, False)),
    (b"E", StreamStop()),
    (
        b"c\0\0\x02\xf1\0" + bytes(7) + b"\x01" + bytes(7) + b"\x02" + b"\xff" * 8,
        StreamCommit(753, Commit(0, Lsn(1), Lsn(2), -1)),
    ),
    (b"A\0\0\x02\xf1\0\0\x02\xf2", StreamAbort(753, 754)),
]


@pytest.mark.parametrize(("payload", "message"), BYTES)
def test_documented_bytes(payload, message):
    """Written out by hand from the documentation: encoder and decoder cannot share a mistake here."""
    assert decode(payload) == message


def test_fields_in_text_form_are_told_apart():
    row = decode(b"I\0\0\0\x01N\0\x02b\0\0\0\x01xt\0\0\0\x01x").new
    assert [type(value) for value in row] == [bytes, TextField]
    assert row[0] == row[1] == field(b"x")


def test_positions_are_lsns():
    begin = decode(encode(SAMPLES[0]))
    assert isinstance(begin, Begin)
    assert str(begin.final_lsn) == "FFFFFFFF/FFFFFFFE"


def replaced(message: Message, offset: int, new: bytes) -> bytes:
    payload = encode(message)
    return payload[:offset] + new + payload[offset + len(new) :]


RELATION = Relation(1, "s", "t", "d", COLUMNS)  # replica identity at 9, count at 10, first column at 12
FAULTS = {
    "empty payload": b"",
    "first piece of a transaction neither so nor not": b"S\0\0\0\x01\x02",
    "commit flags of a transaction in pieces": b"c" + bytes(4) + b"\x01" + bytes(24),
    "begin of a prepared transaction": b"b" + bytes(33),
    "prepared transaction": b"P\0" + bytes(40),
    "type byte zero": b"\0" * 30,
    "type of the old protocol": b"w" + bytes(30),
    "commit flags": b"C\x01" + bytes(24),
    "replica identity": replaced(RELATION, 9, b"x"),
    "negative number of relation columns": replaced(RELATION, 10, b"\x80\0"),
    "more relation columns than sent": replaced(RELATION, 10, b"\0\x04"),
    "fewer relation columns than sent": replaced(RELATION, 10, b"\0\x02"),
    "relation column flags": replaced(RELATION, 12, b"\x02"),
    "name without NUL": b"Y\0\0\0\x01public\0mood",
    "namespace without NUL": b"Y\0\0\0\x01public",
    "origin name without NUL": b"O" + bytes(8) + b"node",
    "namespace not UTF-8": b"Y\0\0\0\x01\xff\0mood\0",
    "name not UTF-8": b"Y\0\0\0\x01public\0\xc3\0",
    "relation name not UTF-8": b"R\0\0\0\x01public\0\xed\xa0\x80\0d\0\0",
    "column name not UTF-8": b"R\0\0\0\x01public\0t\0d\0\x01\x01\xc0\x80\0\0\0\0\x17\xff\xff\xff\xff",
    "origin name not UTF-8": b"O" + bytes(8) + b"\x80\0",
    "prefix not UTF-8": b"M\0" + bytes(8) + b"\xff\0\0\0\0\0",
    "insert marker": b"I\0\0\0\x01K\0\x01n",
    "update marker": b"U\0\0\0\x01X\0\x01nN\0\x01n",
    "update's second marker": b"U\0\0\0\x01K\0\x01nO\0\x01n",
    "update without a new row": b"U\0\0\0\x01K\0\x01n",
    "delete marker": b"D\0\0\0\x01N\0\x01n",
    "column kind": b"I\0\0\0\x01N\0\x01x",
    "column kind NUL": b"I\0\0\0\x01N\0\x01\0",
    "binary length of NULL": b"I\0\0\0\x01N\0\x01b\xff\xff\xff\xff",
    "text length of NULL": b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff",
    "negative length in the middle": b"I\0\0\0\x01N\0\x02b\xff\xff\xff\xf0n",
    "negative length in an old row": b"U\0\0\0\x01K\0\x01b\xff\xff\xff\xffN\0\x01n",
    "length past the end": b"I\0\0\0\x01N\0\x01b\0\0\0\x05four",
    "length past the end, then a column": b"I\0\0\0\x01N\0\x02b\0\0\0\x05fourn",
    "negative number of columns": b"I\0\0\0\x01N\xff\xff" + b"n" * 0xFFFF,
    "negative number of columns, empty": b"I\0\0\0\x01N\xff\xff",
    "negative truncate count": b"T\xff\xff\xff\xff\0",
    "truncate count too large": b"T\0\0\0\x02\0\0\0\0\x01",
    "truncate count too small": b"T\0\0\0\x01\0\0\0\0\x01\0\0\0\x02",
    "truncate count times four wraps": b"T\x40\0\0\0\0",
    "truncate options": b"T\0\0\0\x01\x04\0\0\0\x01",
    "transactional neither 0 nor 1": b"M\x02" + bytes(8) + b"p\0\0\0\0\0",
    "prefix without NUL": b"M\0" + bytes(8) + b"prefix",
    "negative content length": b"M\0" + bytes(8) + b"p\0\xff\xff\xff\xff",
    "content length too small": b"M\0" + bytes(8) + b"p\0\0\0\0\x01ab",
}


@pytest.mark.parametrize("payload", FAULTS.values(), ids=FAULTS.keys())
def test_malformed_message_is_refused(payload):
    with pytest.raises(ProtocolError):
        decode(payload)


@pytest.mark.parametrize("kind", sorted(set(range(256)) - set(b"BCORYIUDTMSEcA")))
def test_types_of_no_or_a_later_protocol_version_are_refused(kind):
    for size in (1, 2, 22, 200):
        with pytest.raises(ProtocolError):
            decode(bytes([kind]) + bytes(size - 1))


@pytest.mark.parametrize(
    "payload",
    [
        b"I\0\0\0\x01N\x7f\xffn",
        b"I\0\0\0\x01N\0\x01b\x7f\xff\xff\xff",
        b"I\0\0\0\x01N\0\x01t\x7f\xff\xff\xff",
        b"R\0\0\0\x01s\0t\0d\x7f\xff\x01a\0",
        b"T\x7f\xff\xff\xff\0\0\0\0\x01",
        b"M\0" + bytes(8) + b"p\0\x7f\xff\xff\xff",
    ],
)
def test_a_length_that_lies_allocates_nothing(payload):
    with pytest.raises(ProtocolError):
        decode(payload)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000  # the error itself and pytest's look at it


def test_errors_show_no_value():
    secret = b"s3cret-value"
    row = struct.pack(">cIcH", b"I", 1, b"N", 2) + b"b" + field(secret)
    for payload in (row + b"x", row, row + b"n" + secret):
        with pytest.raises(ProtocolError) as caught:
            decode(payload)
        assert "s3cret" not in str(caught.value) + caught.value.hint + repr(caught.value.__cause__)


lsns = st.integers(0, 2**64 - 1).map(Lsn)
times = st.integers(-(2**63), 2**63 - 1)
oids = st.integers(0, 2**32 - 1)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
values = st.binary(max_size=40)
fields = st.one_of(
    values.map(field), values.map(text_field), st.just(NULL), st.just(UNCHANGED), st.just(field(bytes(70_000)))
)
rows = st.lists(fields, max_size=12).map(tuple)
columns = st.builds(RelationColumn, st.booleans(), names, oids, st.integers(-(2**31), 2**31 - 1))
messages = st.one_of(
    st.builds(Begin, lsns, times, oids),
    st.builds(Commit, st.just(0), lsns, lsns, times),
    st.builds(Origin, lsns, names),
    st.builds(Relation, oids, names.filter(bool), names, st.sampled_from("dnfi"), st.lists(columns).map(tuple)),
    st.builds(TypeMessage, oids, names.filter(bool), names),
    st.builds(Insert, oids, rows),
    st.builds(Update, oids, rows, st.booleans(), rows),
    st.builds(Update, oids, st.none(), st.just(False), rows),
    st.builds(Delete, oids, rows, st.booleans()),
    st.builds(Truncate, st.lists(oids).map(tuple), st.booleans(), st.booleans()),
    st.builds(LogicalMessage, st.booleans(), lsns, names, values),
)


@given(messages)
def test_round_trip(message):
    decoded = decode(encode(message))
    assert decoded == message
    assert repr(decoded) == repr(message)  # tells TextField from bytes, bool from int


@given(messages, st.integers(0, 2**32))
def test_mutated_message_decodes_or_is_refused(message, seed):
    """Nothing but ProtocolError gets out, and what is accepted encodes to the very same bytes."""
    rng = random.Random(seed)
    payload = mutate(encode(message), rng)
    try:
        decoded = decode(payload)
    except ProtocolError:
        return
    assert encode(decoded) == payload


@given(st.sampled_from(b"BCORYIUDTM"), st.binary(max_size=80))
def test_random_bytes_decode_or_are_refused(kind, rest):
    payload = bytes([kind]) + rest
    try:
        decoded = decode(payload)
    except ProtocolError:
        return
    assert encode(decoded) == payload


def test_no_field_is_lost_in_a_wide_row():
    row = tuple(field(str(number).encode()) for number in range(1600))
    assert decode(encode(Insert(1, row))) == Insert(1, row)
