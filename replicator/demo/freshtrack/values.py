"""Values of the sample data: plausible ones, and those that break careless tools."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TypeVar

T = TypeVar("T")

# Each was mangled by some tool: taken for NULL or an end marker, trimmed, unescaped once too often, reordered.
BITING_TEXTS: tuple[str, ...] = (
    "",
    " ",
    "  blanks around  ",
    "\\N",
    "\\.",
    "NULL",
    "null",
    "\\",
    'O\'Brien said "hi"',
    "back\\slash \\n \\x41",
    "tab\there",
    "line\nbreak",
    "crlf\r\nend",
    "\x01\x7f control",
    "a,b;c|d",
    '{1,NULL,"x"}',
    "%s %% {x} $1",
    "'; DROP TABLE units; --",
    "e\u0301 ne\u0308 combining",
    "\u00e9 composed",
    "\ufeffmark\u200b",
    "🧊👩\u200d🚒🇩🇪",
    "שלום مرحبا",
    "\u202eoverride",
    "冷蔵庫 №1",
    "𝕱𝖗𝖎𝖉𝖌𝖊",
)

# timestamptz that Python's datetime cannot hold, or that lie outside all monthly partitions.
BITING_TIMES: tuple[str, ...] = (
    "infinity",
    "-infinity",
    "0044-03-15 12:00:00+00 BC",
    "294276-12-31 23:59:59.999+00",
    "1969-12-31 23:59:59.999+00",
    "2023-12-31 23:59:59.999+00",
    "2024-01-01 00:00:00+00",
    "2026-06-30 23:59:59.999+00",
    "2026-07-01 00:00:00+00",
    "2024-03-31 01:30:00.0005+01:30",
)

# numeric(7,2): no negative zero survives, NaN does, and is larger than every number.
BITING_TEMPERATURES: tuple[str, ...] = ("NaN", "-0.00", "0", "99999.99", "-99999.99", "0.01", "32.005", "1e3")

EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
END = datetime(2026, 6, 30, 23, 0, tzinfo=UTC)
_SPAN_MS = int((END - EPOCH).total_seconds() * 1000)

_FIRST = ("Ana", "Björn", "Chloé", "Dmitri", "Eun-ji", "Fatma", "Gül", "Hamid", "Inés", "José", "Łucja", "Zoë")
_LAST = ("O'Neill", "Müller", "Nguyễn", "Šimić", "García", "Ødegård", "Smith", "Yıldız", "de la Cruz", "Wang")
_BCRYPT = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def uuid4(rng: Random) -> str:
    """A random version 4 UUID in its canonical form."""
    digits = f"{rng.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def moment(rng: Random) -> str:
    """A timestamp within the monthly partitions, in milliseconds."""
    return stamp(EPOCH + timedelta(milliseconds=rng.randrange(_SPAN_MS)))


def stamp(time: datetime) -> str:
    """PostgreSQL's input form of `time`, in milliseconds."""
    return time.isoformat(" ", "milliseconds")


def text(rng: Random, *, longest: int | None = None) -> str:
    """One of `BITING_TEXTS`, not longer than `longest` characters, sometimes exactly as long."""
    if longest is not None and rng.random() < 0.05:
        return rng.choice("aß冷🧊") * longest
    chosen = rng.choice(BITING_TEXTS)
    return chosen if longest is None else chosen[:longest]


def person(rng: Random) -> str:
    """A full name."""
    return f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"


def incompressible(rng: Random, length: int) -> str:
    """Random base64 of `length` characters: too long for a page, it is stored out of line as it is."""
    return base64.b64encode(rng.randbytes(length * 3 // 4 + 3)).decode()[:length]


def odd_json(rng: Random, **members: object) -> str:
    """JSON whose exact bytes matter: blanks, a repeated key, 1e2, escaped and raw characters."""
    body = json.dumps(members, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 1)))
    return f'{{"a": 1e2,  "b":1.50, "a":{rng.randrange(1000)}, "é\\u00e9":"{rng.random()}" , "m":{body}}}'


def bcrypt_hash(rng: Random) -> str:
    """What a bcrypt hash looks like; it is the hash of nothing."""
    return f"$2{rng.choice('aby')}$10$" + "".join(rng.choices(_BCRYPT, k=53))


def argon2_hash(rng: Random) -> str:
    """What an argon2id hash looks like."""
    salt, digest = incompressible(rng, 22), incompressible(rng, 43)
    return f"$argon2id$v=19$m=65536,t=3,p=4${salt}${digest}"


def maybe(rng: Random, value: T, chance: float = 0.5) -> T | None:
    """`value` with probability `chance`, else NULL."""
    return value if rng.random() < chance else None


def pick(rng: Random, values: Sequence[str]) -> str:
    """One of `values`."""
    return values[int(rng.random() * len(values))]  # a third of the cost of choice(), millions of times
