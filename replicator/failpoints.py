"""Faults on purpose: named places where a test lets this process die, stop, wait or lose a connection.

Inert, and one comparison each, unless `arm` found something in the environment variable ``REPLICATOR_FAILPOINTS``:
``NAME=ACTION[:SECONDS][@N]``, several separated by commas. A fault acts at the N-th time that this process comes to its
place (1 unless said otherwise), and once.

========  ============================================================================================================
kill      SIGKILL for this process
stop      SIGSTOP: it stands still until SIGCONT
term      SIGTERM
fail      raises TransientError: what a retry cures
reject    raises a check violation: what a server says to a row that it does not want
lost      cuts the connection that is used at this place, after what was sent on it has been done
hold:S    waits S seconds
slow:S    waits S seconds every time from the N-th on
========  ============================================================================================================

``trace=FILE`` appends the name of every place that this process comes to, once each, to a file.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import errors

from replicator.errors import ConfigError, TransientError

VARIABLE: Final = "REPLICATOR_FAILPOINTS"

STEPS: Final = ("check", "freeze", "fence", "drain", "sequences", "indexes", "verify", "finalize")

# Every place there is, in the order in which a replication comes to them.
NAMES: Final = (
    "after_lock",  # of the writer; nothing of the state is read yet
    "before_slot",  # the slot is announced in our state
    "after_slot",  # and made, but no checkpoint says so
    "before_index_drop",  # in the transaction that enters the table as being copied
    "after_table_entered",  # committed, its indexes dropped if they are deferred
    "before_part",  # rows of a table, or of a range of its pages, are sent but not committed
    "after_part",  # committed, in a process or thread of its own; nothing says so yet
    "before_table_copied",  # all parts are in
    "after_table_copied",  # and recorded
    "before_index_rebuild",
    "after_index_rebuild",  # committed
    "before_snapshot_complete",
    "after_snapshot_complete",  # recorded; the stream has not begun
    "before_checkpoint_read",
    "after_checkpoint_read",
    "before_batch",  # the changes of a batch are not sent yet
    "after_batch",  # sent, not committed
    "before_commit",
    "after_commit",  # committed, and we do not know it yet
    "before_feedback",
    "after_feedback",
    *(f"{when}_step:{step}" for step in STEPS[:-1] for when in ("before", "after")),  # running · done, not recorded
    "before_step:finalize",
    "before_hand_over",  # sessions of the source are ended; the hand-over is not committed
    "after_hand_over",  # committed; the lock is still held
    "after_step:finalize",
)
ACTIONS: Final = ("kill", "stop", "term", "fail", "reject", "lost", "hold", "slow")

_FAULT: Final = re.compile(r"(?P<name>[^=]+)=(?P<action>[a-z]+)(?::(?P<seconds>[0-9.]+))?(?:@(?P<nth>[1-9][0-9]*))?")
_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
_TRACE: Final = "trace="


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at the ``nth`` visit of a place."""

    name: str
    action: str
    seconds: float
    nth: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the variable asks for."""

    faults: Sequence[Fault]
    trace: Path | None


class _Armed:
    """The faults of this process and its visits so far."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._visits: Counter[str] = Counter()
        self._lock = threading.Lock()

    def awaits(self, name: str) -> bool:
        return self._plan.trace is not None or any(fault.name == name for fault in self._plan.faults)

    def visit(self, name: str, conn: psycopg.Connection[Any] | None) -> None:
        if name not in NAMES:
            raise ConfigError(f"failpoint {name} has no entry in failpoints.NAMES")
        with self._lock:
            self._visits[name] += 1
            count = self._visits[name]
            if count == 1 and self._plan.trace is not None:
                with self._plan.trace.open("a") as file:
                    file.write(f"{name}\n")
        for fault in self._plan.faults:
            if fault.name == name and (count == fault.nth or (fault.action == "slow" and count > fault.nth)):
                _act(fault, conn)


_armed: _Armed | None = None


def failpoint(name: str, conn: psycopg.Connection[Any] | None = None) -> None:
    """A place where faults may be asked for; ``conn``: what ``lost`` cuts here."""
    if _armed is not None:
        _armed.visit(name, conn)


def is_armed(name: str) -> bool:
    """Whether a fault is asked for at this place, or a trace of all places."""
    return _armed is not None and _armed.awaits(name)


def arm(environment: Mapping[str, str] = os.environ) -> None:
    """Take up the faults that the environment asks for; none: the failpoints of this process are inert.

    Raises:
        ConfigError: an unknown place or action.
    """
    global _armed
    text = environment.get(VARIABLE, "")
    _armed = _Armed(parse(text)) if text else None


def parse(text: str) -> Plan:
    """Read the variable's value.

    Raises:
        ConfigError: an unknown place or action.
    """
    faults: list[Fault] = []
    trace = None
    for word in text.split(","):
        if word.startswith(_TRACE):
            trace = Path(word.removeprefix(_TRACE))
            continue
        found = _FAULT.fullmatch(word)
        if found is None:
            raise ConfigError(f"{VARIABLE}: {word!r} does not read NAME=ACTION", hint="such as after_commit=kill@3")
        name, action, seconds, nth = found.group("name", "action", "seconds", "nth")
        if name not in NAMES:
            raise ConfigError(f"{VARIABLE}: there is no failpoint {name}", hint=f"one of {', '.join(NAMES)}")
        if action not in ACTIONS:
            raise ConfigError(f"{VARIABLE}: there is no action {action}", hint=f"one of {', '.join(ACTIONS)}")
        if (action in ("hold", "slow")) != (seconds is not None):
            raise ConfigError(f"{VARIABLE}: {word!r}: hold and slow want seconds, and no other action does")
        faults.append(Fault(name, action, float(seconds or 0), int(nth or 1)))
    return Plan(tuple(faults), trace)


def _act(fault: Fault, conn: psycopg.Connection[Any] | None) -> None:
    # Not the logger: in a copying process it is not set up, and would write to stdout.
    sys.stderr.write(f"failpoint {fault.name}: {fault.action}\n")
    sys.stderr.flush()
    if fault.action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[fault.action])
    elif fault.action == "fail":
        raise TransientError(f"failpoint {fault.name}")
    elif fault.action == "reject":
        raise errors.CheckViolation(f"failpoint {fault.name}")
    elif fault.action == "lost":
        if conn is None:
            raise ConfigError(f"{VARIABLE}: no connection is used at {fault.name}", hint="lost has no meaning there")
        _lose(conn)
    else:
        time.sleep(fault.seconds)


def _lose(conn: psycopg.Connection[Any]) -> None:
    """Cut it, and let the driver find out as it would."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(conn.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)
    conn.execute("SELECT 1")
