"""Every error that the replicator raises, sorted by its remedy.

A message names the table, column or LSN at fault and never holds a value of a row or a password.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

# The remedy wherever changes are lost to the stream. The target holds the rows of the snapshot before: --truncate.
NEW_SNAPSHOT: Final = (
    "`replicator run --truncate` starts over with a new slot and snapshot, and keeps the ID maps "
    "(or `replicator teardown` first, which removes everything)"
)
# The same where the checkpoint belongs to another server: then nothing there is ours to continue or to drop.
OTHER_SOURCE: Final = "`replicator teardown --skip-source`, then `replicator run --truncate` for a new snapshot"


class ReplicatorError(Exception):
    """Base of all our errors: what is wrong, and (``hint``) what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(ReplicatorError):
    """Settings or usage are wrong: fix them (exit 2)."""


class TransientError(ReplicatorError):
    """A connection was lost or a server is not up: retry with backoff."""

    advanced: bool = False  # whether something was committed before it: then the next retry comes at once


class TooEarly(TransientError):
    """A transaction was read ahead of its commit, and cannot be: read whole transactions instead."""


class ProtocolError(ReplicatorError):
    """Bytes that the replication protocol does not allow: stop."""


class SchemaMismatch(ReplicatorError):
    """A relation differs from its route: mend the target or the settings, then start again."""

    doubt: Hashable = None  # what a plan made anew settles: with it in `Relations`, the stream goes on


class SlotLost(ReplicatorError):
    """The slot is gone, was re-created or has moved past our checkpoint: a new snapshot is needed."""


class StateError(ReplicatorError):
    """The recorded state forbids this (another replicator runs, wrong source, unfinished phase)."""


class UnmappedId(ReplicatorError):
    """A user ID has no target ID and the policy says stop."""

    unmapped: frozenset[Any] = frozenset()  # routing.idmap.Unmapped: what to record for the operator


class RowRejected(ReplicatorError):
    """The target refuses a row, or a change did not hit exactly the rows expected."""

    reason: str = ""  # why, in a few words and by names alone: what the quarantine shows


class VerificationFailed(ReplicatorError):
    """The two sides differ."""


class Refused(ReplicatorError):
    """A command declines to act because a precondition does not hold (exit 1)."""
