"""What of a server's error may be passed on: names, states and reasons, never a value of a row.

A server quotes values freely: ``invalid input syntax for type integer: "…"``, an unknown enum label, whatever a
trigger raises. So its message is repeated only where the SQLSTATE is about sessions, rights and objects, and where no
code of a user was running. For all else the condition's name stands, and the server's own log has the rest.

Source: PostgreSQL docs, "PostgreSQL Error Codes".
"""

from __future__ import annotations

from typing import Final

import psycopg

WITHHELD_HINT: Final = "the server's log has its message, which may quote values and so is left out here"

_TELLABLE_CLASSES: Final = frozenset(
    {
        "08",  # connection
        "0A",  # feature not supported
        "25",  # transaction state: read-only, …
        "28",  # authorization
        "2B",  # other objects depend on it
        "3D", "3F",  # no such database, schema
        "40",  # serialization, deadlock
        "42",  # names and rights
        "53",  # disk full, too many connections
        "55",  # locks, slots, settings
        "57",  # shutdown, cancel, timeouts
        "58",  # files
    }
)  # fmt: skip
# Of those, what quotes the text of a statement, and with it literals.
_UNTELLABLE: Final = frozenset({"42601"})
# No object has the name that was asked for, or it is no name. A value cast to regclass, say, is such a name as well.
_NAMING_CLASSES: Final = frozenset({"3D", "3F", "42"})
_RIGHTS: Final = "42501"
# How the innermost line of the context begins where the server itself is at work, and not a trigger or a function.
# `COPY` is not among them: that is where a row is being read.
_SERVER_CONTEXTS: Final = ("slot ", "while ")


def describe(exc: psycopg.Error, *, of_rows: bool = False) -> str:
    """The server's own words where they can hold no value, else the name of its condition; one line.

    ``of_rows``: the statement took rows.
    """
    code = exc.sqlstate
    if code is None:
        # libpq's, about the connection. Any other comes from the driver, which quotes what it could not convert.
        return _first_line(exc) if isinstance(exc, psycopg.OperationalError) else type(exc).__name__
    primary = exc.diag.message_primary
    tellable = code[:2] in _TELLABLE_CLASSES and code not in _UNTELLABLE and _is_of_server(exc)
    if primary and tellable and not (of_rows and _may_name_a_value(exc, code)):
        return primary
    where = ".".join(filter(None, (exc.diag.schema_name, exc.diag.table_name))) if _is_of_server(exc) else ""
    names = ", ".join(filter(None, (where, object_at_fault(exc))))
    return f"{type(exc).__name__}{f' at {names}' if names else ''} ({code})"


def is_withheld(exc: psycopg.Error, *, of_rows: bool = False) -> bool:
    """Whether `describe` keeps back what the server says."""
    return bool(exc.diag.message_primary) and exc.diag.message_primary != describe(exc, of_rows=of_rows)


def object_at_fault(exc: psycopg.Error) -> str:
    """The constraint or column that the server names; "" where a function names them: it may say anything."""
    if not _is_of_server(exc, copying=True):
        return ""
    return exc.diag.constraint_name or exc.diag.column_name or ""


def _may_name_a_value(exc: psycopg.Error, code: str) -> bool:
    """Whether the name at fault does not stand in the statement itself: then the server would say at which place."""
    return code[:2] in _NAMING_CLASSES and code != _RIGHTS and exc.diag.statement_position is None


def _is_of_server(exc: psycopg.Error, *, copying: bool = False) -> bool:
    """Whether no function of a user was running. An unknown context, one in another language say, counts as one."""
    innermost = (exc.diag.context or "").partition("\n")[0]
    return not innermost or innermost.startswith((*_SERVER_CONTEXTS, "COPY ") if copying else _SERVER_CONTEXTS)


def _first_line(exc: psycopg.Error) -> str:
    lines = str(exc).strip().splitlines()
    return next((line for line in lines if "FATAL" in line), lines[0] if lines else type(exc).__name__)
