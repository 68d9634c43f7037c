"""The replication protocol's own frames."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import ProtocolError
from replicator.model.lsn import Lsn
from replicator.pgoutput import (
    PrimaryKeepalive,
    XLogData,
    parse_frame,
    standby_status_update,
    unix_seconds,
    wire_microseconds,
)
from tests.pgoutput import fuzz_decoder

XLOG = b"w\0\0\0\x16\xb3\x74\xd8\x48\0\0\0\x16\xb3\x74\xd8\x50\xff\xff\xff\xff\xff\xff\xff\xfe"
KEEPALIVE = b"k\0\0\0\x16\xb3\x74\xd8\x48\0\0\0\0\0\0\0\x07"


@pytest.mark.parametrize("payload", [b"", b"B", b"I" * 1000])
def test_xlog_data(payload):
    frame = parse_frame(XLOG + payload)
    assert frame == XLogData(Lsn.parse("16/B374D848"), Lsn.parse("16/B374D850"), -2, payload)
    assert isinstance(frame, XLogData)
    assert str(frame.wal_end) == "16/B374D850"
    assert type(frame.payload) is bytes


@pytest.mark.parametrize(("flag", "reply_requested"), [(b"\0", False), (b"\1", True)])
def test_keepalive(flag, reply_requested):
    frame = parse_frame(KEEPALIVE + flag)
    assert frame == PrimaryKeepalive(Lsn.parse("16/B374D848"), 7, reply_requested)
    assert isinstance(frame, PrimaryKeepalive)
    assert str(frame.wal_end) == "16/B374D848"
    assert frame.reply_requested is reply_requested


@pytest.mark.parametrize("whole", [XLOG, KEEPALIVE + b"\0"])
def test_frame_cut_at_any_byte_is_refused(whole):
    for length in range(len(whole)):
        with pytest.raises(ProtocolError):
            parse_frame(whole[:length])


@pytest.mark.parametrize(
    "data", [KEEPALIVE + b"\2", KEEPALIVE + b"\0\0", b"s" + XLOG[1:], b"r" + bytes(33), b"\0", b"h" + bytes(40)]
)
def test_malformed_frame_is_refused(data):
    with pytest.raises(ProtocolError):
        parse_frame(data)


@given(st.one_of(st.binary(), st.binary().map(b"w".__add__), st.binary(min_size=17, max_size=17).map(b"k".__add__)))
def test_any_bytes_parse_or_are_refused(data):
    try:
        frame = parse_frame(data)
    except ProtocolError:
        return
    if isinstance(frame, XLogData):
        assert data.endswith(frame.payload)
        assert len(data) == 25 + len(frame.payload)
    else:
        assert len(data) == 18


@pytest.mark.parametrize("reply_requested", [False, True])
def test_status_update_as_documented(reply_requested):
    update = standby_status_update(
        written=Lsn(2**64 - 1), flushed=Lsn(2), applied=Lsn(3), clock_us=-4, reply_requested=reply_requested
    )
    positions = b"\xff" * 8 + bytes(7) + b"\x02" + bytes(7) + b"\x03"
    assert update == b"r" + positions + b"\xff" * 7 + b"\xfc" + bytes([reply_requested])


def test_times_count_from_2000():
    moment = datetime(2024, 2, 29, 12, 34, 56, 789012, tzinfo=UTC)
    wire = (moment - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() * 1e6
    assert wire_microseconds(moment.timestamp()) == round(wire)
    assert unix_seconds(round(wire)) == moment.timestamp()
    assert unix_seconds(0) == 946_684_800


@given(st.integers(-(10**15), 3 * 10**15))
def test_times_round_trip(time_us):
    """From 1968 to 2095 a float holds every microsecond."""
    assert wire_microseconds(unix_seconds(time_us)) == time_us


@pytest.mark.parametrize("seed", range(4))
def test_mutated_frames_are_read_or_refused(seed):
    """Frame and message together, as the receiver reads them; `python -m tests.pgoutput.fuzz_decoder` does millions."""
    accepted, refused = fuzz_decoder.fuzz(5_000, seed)
    assert accepted > 100
    assert refused > 1000
