"""What can happen to a row."""

from __future__ import annotations

from enum import Enum


class Op(Enum):
    """An operation of the change stream; the value is the ``op`` label of the metrics."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"
