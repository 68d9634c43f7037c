"""What the target refuses, and how it is told: by names alone, for the server's messages and details quote values."""

from __future__ import annotations

import re

import psycopg
from psycopg import errors

from replicator.errors import ReplicatorError, RowRejected, SchemaMismatch
from replicator.model.change import Op
from replicator.model.schema import show_table
from replicator.postgres.connection import translate
from replicator.postgres.diagnosis import describe, object_at_fault
from replicator.stream.compose import Step
from replicator.target.unaltered import is_alteration

# The row's fault, whoever wrote it: constraints and types of its table, limits of an index, a trigger that raises.
# A missing table or column, rights, a full disk and the like are nobody's row.
REFUSALS = (
    errors.IntegrityError,
    errors.DataError,
    errors.ProgramLimitExceeded,
    errors.RaiseException,
    errors.NoDataFound,
    errors.TooManyRows,
    errors.AssertFailure,
)

_FUNCTION = re.compile(r"PL/pgSQL function ([\w.$]+)\(")
_AGAIN = "mend the target's column or constraint, then start again: the change will be sent again"
_MEND = f"{_AGAIN}; or let such changes "
_LABEL = "has the target every label of the source's enums? ALTER TYPE … ADD VALUE adds one; "
NOT_SET_ASIDE = f"{_AGAIN}; of a transaction larger than a batch nothing can be set aside at its end"
_SET_ASIDE = 'be set aside: on_rejected_row = "quarantine" under [stream]'


class Miscount(Exception):  # no error yet: as a set it may have another cause than one by one
    """A statement hit another number of rows than it should."""

    def __init__(self, table: str, op: Op, expected: int, found: int) -> None:
        super().__init__(f"{op.value} on {table} hit {found} rows instead of {expected}")


class DeferredRefusal(RowRejected):
    """A deferred constraint does not hold; at which change nobody tells."""


def is_of_checkpoint(exc: psycopg.Error) -> bool:
    """Whether it was our own state that refused: a cutover has finalized."""
    return exc.diag.schema_name == "replicator"


def refused(exc: Exception, step: Step | None) -> RowRejected:
    """The refusal of what ``step`` did."""
    if isinstance(exc, Miscount):
        rejected = RowRejected(
            f"target: {exc}", hint="somebody else has changed the target; `replicator verify` shows where"
        )
        rejected.reason = str(exc)
        return rejected
    assert isinstance(exc, psycopg.Error) and step is not None
    what = object_at_fault(exc) or _function(exc)
    where = f" ({what})" if what else ""
    rejected = RowRejected(
        f"target: {step.table} refuses an {step.op.value}{where}: {type(exc).__name__}, {exc.sqlstate}",
        hint=(_LABEL if isinstance(exc, errors.InvalidTextRepresentation) else "") + _MEND + _SET_ASIDE,
    )
    rejected.reason = _reason(exc, what)
    return rejected


def refused_by_constraint(exc: Exception) -> DeferredRefusal:
    """The refusal of changes as a whole: a deferred constraint or trigger looked at them, or they came as a set."""
    assert isinstance(exc, psycopg.Error)
    known, diag = object_at_fault(exc), exc.diag
    what = known or _function(exc)
    table = show_table((diag.schema_name or "", diag.table_name)) if known and diag.table_name else "the target"
    where = f" ({what})" if what else ""
    rejected = DeferredRefusal(
        f"target: {table} refuses changes when they are to be committed{where}: {type(exc).__name__}, {exc.sqlstate}",
        hint=_MEND + _SET_ASIDE,
    )
    rejected.reason = _reason(exc, what)
    return rejected


def _reason(exc: psycopg.Error, what: str) -> str:
    return f"{type(exc).__name__} {exc.sqlstate}" + (f" ({what})" if what else "")


def _function(exc: psycopg.Error) -> str:
    """The function that raised it: the one thing that it cannot choose itself."""
    found = _FUNCTION.match(exc.diag.context or "")
    return found[1] if found else ""


def explain(exc: psycopg.Error) -> ReplicatorError:
    """Our error for what the target said to a change that both sides' catalogs allowed at the start."""
    if is_alteration(exc):
        return SchemaMismatch(
            "target: a table was altered while changes went into it",
            hint="start again: the routes are planned anew from its catalog",
        )
    if isinstance(
        exc, errors.UndefinedColumn | errors.UndefinedTable | errors.DatatypeMismatch | errors.UndefinedObject
    ):
        return SchemaMismatch(
            f"target: {describe(exc, of_rows=True)}",
            hint="a table of the target has changed: mend it or the settings, then start again",
        )
    return translate(exc, "target", of_rows=True)
