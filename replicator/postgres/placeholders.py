"""Names in statements that take parameters."""

from __future__ import annotations

from psycopg import sql


def with_placeholders(statement: sql.Composable) -> bytes:
    """The text of a statement for `execute` with parameters, empty ones included.

    psycopg takes every ``%`` of such a text for a placeholder, also one inside a quoted name: there it is doubled.
    """
    if isinstance(statement, sql.Composed):
        return b"".join(with_placeholders(part) for part in statement)
    text = statement.as_bytes()
    return text.replace(b"%", b"%%") if isinstance(statement, sql.Identifier) else text
