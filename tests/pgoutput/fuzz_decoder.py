"""Mutated frames and messages by the million: `python -m tests.pgoutput.fuzz_decoder [--seed N] [--count N]`."""

from __future__ import annotations

import argparse
import random
import resource
import struct
import time

from replicator.errors import ProtocolError
from replicator.pgoutput import XLOG_DATA_HEADER_BYTES, PrimaryKeepalive, XLogData, decode, parse_frame
from tests.pgoutput.wire import SAMPLES, encode, in_stream

# Numbers at the edges of what lengths, counts and flags can be.
_EDGES = [
    number.to_bytes(size, "big")
    for size, numbers in {
        1: (0, 1, 2, 3, 4, 0x7F, 0x80, 0xFF, *b"BCORYIUDTMNKObnutdfiSEcA"),
        2: (0, 1, 2, 6, 0x7FFF, 0x8000, 0xFFFF),
        4: (0, 1, 2, 4, 0x3FFFFFFF, 0x40000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF),
    }.items()
    for number in numbers
]


def mutate(payload: bytes, rng: random.Random) -> bytes:
    """`payload` with one to four random changes."""
    data = bytearray(payload)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                edge = rng.choice(_EDGES)
                data[at : at + len(edge)] = edge
            case 2 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 3:
                del data[at : at + rng.randrange(1, 9)]
            case 4:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 5:
                data[at:at] = data[rng.randrange(len(data) + 1) :][: rng.randrange(1, 30)]
            case _:
                del data[at:]
    return bytes(data)


def framed(frame: XLogData | PrimaryKeepalive) -> bytes:
    """The frame as the server sends it."""
    if isinstance(frame, XLogData):
        return struct.pack(">cQQq", b"w", frame.wal_start, frame.wal_end, frame.send_time) + frame.payload
    return struct.pack(">cQqB", b"k", frame.wal_end, frame.send_time, frame.reply_requested)


def read(data: bytes) -> None:
    """Take a frame, and the message in it, as the receiver does.

    Raises:
        ProtocolError: as it may.
        AssertionError: what was accepted is not what was sent.
    """
    frame = parse_frame(data)
    if framed(frame) != data:
        raise AssertionError(f"was accepted as {frame!r}")
    if isinstance(frame, XLogData):
        message = decode(data, XLOG_DATA_HEADER_BYTES)
        if encode(message) != frame.payload:
            raise AssertionError(f"was accepted as {message!r}")
        moved = data[:XLOG_DATA_HEADER_BYTES] + in_stream(frame.payload, data[:4])
        if decode(moved, XLOG_DATA_HEADER_BYTES, True) != message:
            raise AssertionError(f"{moved!r} was not accepted in a stream")


_LONGEST_S = 5.0  # for one message: a thousand times what the largest of them takes, on a busy machine


def fuzz(count: int, seed: int) -> tuple[int, int]:
    """Read `count` mutated frames; how many were accepted and how many refused.

    Whatever else happens raises, with the frame in the message: a sample holds no secret.
    """
    rng = random.Random(seed)
    payloads = [encode(message) for message in SAMPLES]
    headers = [b"w" + bytes(24), b"w" + b"\xff" * 24]
    keepalive = framed(PrimaryKeepalive(SAMPLES[0].final_lsn, 5, True))  # type: ignore[union-attr]
    accepted = 0
    for number in range(count):
        match rng.randrange(8):
            case 0:
                data = mutate(keepalive, rng)
            case 1:
                data = mutate(rng.choice(headers) + rng.choice(payloads), rng)
            case _:
                data = rng.choice(headers) + mutate(rng.choice(payloads), rng)
        begun = time.perf_counter()
        try:
            read(data)
            accepted += 1
        except ProtocolError:
            pass
        except BaseException as exc:
            raise AssertionError(f"seed {seed}, frame {number}: {type(exc).__name__}: {exc} from {data!r}") from exc
        if time.perf_counter() - begun > _LONGEST_S:
            raise AssertionError(f"seed {seed}, frame {number} took too long: {data!r}")
    return accepted, count - accepted


_MEMORY = 1 << 30  # samples have less than a kilobyte; a length that lies asks for two gigabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1_000_000)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    start = time.monotonic()
    accepted, refused = fuzz(arguments.count, arguments.seed)
    print(f"seed {arguments.seed}: {accepted} accepted, {refused} refused in {time.monotonic() - start:.0f} s")  # noqa: T201 — a script


if __name__ == "__main__":
    main()
