"""Mutated messages by the million: `python -m tests.pgoutput.fuzz_decoder [--seed N] [--count N]`."""

from __future__ import annotations

import argparse
import random
import time

from replicator.errors import ProtocolError
from replicator.pgoutput import decode
from tests.pgoutput.wire import SAMPLES, encode

# Numbers at the edges of what lengths, counts and flags can be.
_EDGES = [
    number.to_bytes(size, "big")
    for size, numbers in {
        1: (0, 1, 2, 3, 4, 0x7F, 0x80, 0xFF, *b"BCORYIUDTMNKObnutdfi"),
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


def fuzz(count: int, seed: int) -> tuple[int, int]:
    """Decode `count` mutated samples; how many were accepted and how many refused.

    Whatever else happens raises, with the payload in the message: a sample holds no secret.
    """
    rng = random.Random(seed)
    payloads = [encode(message) for message in SAMPLES]
    accepted = 0
    for number in range(count):
        payload = mutate(rng.choice(payloads), rng)
        try:
            message = decode(payload)
        except ProtocolError:
            continue
        except BaseException as exc:
            raise AssertionError(f"message {number}: {type(exc).__name__} from {payload!r}") from exc
        if encode(message) != payload:
            raise AssertionError(f"message {number}: {payload!r} was accepted as {message!r}")
        accepted += 1
    return accepted, count - accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1_000_000)
    arguments = parser.parse_args()
    start = time.monotonic()
    accepted, refused = fuzz(arguments.count, arguments.seed)
    print(f"{accepted} accepted, {refused} refused in {time.monotonic() - start:.0f} s")  # noqa: T201 — a script


if __name__ == "__main__":
    main()
