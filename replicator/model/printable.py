"""Names as people and terminals may see them: PostgreSQL lets a name hold anything but NUL."""

from __future__ import annotations

import re
from typing import Final

# Control characters, which drive terminals and break lines; what turns the direction of writing, and so shows one name
# as another; line separators, the byte order mark, and surrogates, which no output can encode.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` on one line, with ``\\n``, ``\\x1b``, … for what a terminal would not show but obey."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable_json(text: str) -> str:
    """The same for a JSON document, which means what it meant: in JSON these characters stand in strings only."""
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)
