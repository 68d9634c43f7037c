"""Sequences: which of the target continue which of the source, and setting them.

Logical replication carries no sequences, so the target's stand where they were created. They take over the source's
own state (``last_value``, ``is_called``), never ``max(id)``: IDs of deleted rows must not come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

from replicator.errors import SchemaMismatch
from replicator.model.schema import TableName, show_table
from replicator.postgres.catalog import read_query
from replicator.postgres.connection import Connection, query, table_identifier
from replicator.routing.route import Fault, Route


@dataclass(frozen=True, slots=True)
class SequenceInfo:
    """A sequence of one server, as its catalog describes it."""

    name: TableName
    oid: int
    increment: int
    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class SequencePair:
    """The target's sequence that continues the source's."""

    source: SequenceInfo
    target: SequenceInfo


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """What `set_sequences` will do, and what stands in the way.

    ``faults`` stop a cutover; ``unmatched`` are sequences that no column uses and that the target lacks.
    """

    pairs: tuple[SequencePair, ...]
    faults: tuple[Fault, ...]
    unmatched: tuple[TableName, ...]


@dataclass(frozen=True, slots=True)
class SequenceValue:
    """The state of a sequence: the next value is ``last_value`` itself while it ``is_called`` false."""

    last_value: int
    is_called: bool


@dataclass(frozen=True, slots=True)
class _Catalog:
    """The sequences of one side. ``by_column``: (table OID, column) → its sequences, the owned one first."""

    by_name: Mapping[TableName, SequenceInfo]
    by_column: Mapping[tuple[int, str], tuple[SequenceInfo, ...]]
    unused: tuple[SequenceInfo, ...]


def plan_sequences(source: Connection, target: Connection, routes: Sequence[Route]) -> SequencePlan:
    """Match the sequences of the replicated columns by column, the standalone ones by name. Sets nothing.

    A sequence that only a column without a home draws from is left out. One that no column uses at all (a function
    may call it) is taken along where the target has its namesake.
    """
    ours = _load(source, [route.source.oid for route in routes], {route.source.name[0] for route in routes})
    theirs = _load(target, [route.target.oid for route in routes], {route.target.name[0] for route in routes})
    pairs: dict[tuple[int, int], SequencePair] = {}
    faults: list[Fault] = []
    for route in routes:
        for column in route.columns:
            candidates = theirs.by_column.get((route.target.oid, column.target.name), ())
            for sequence in ours.by_column.get((route.source.oid, column.source.name), ()):
                match = next(iter(candidates), None) or theirs.by_name.get(sequence.name)
                if match is None:
                    faults.append(_missing(route, column.target.name, sequence))
                else:
                    pairs[sequence.oid, match.oid] = SequencePair(sequence, match)
    unmatched = []
    for sequence in ours.unused:
        match = theirs.by_name.get(sequence.name)
        if match is None:
            unmatched.append(sequence.name)
        else:
            pairs[sequence.oid, match.oid] = SequencePair(sequence, match)
    faults += _direction_faults(pairs.values()) + _privilege_faults(source, target, list(pairs.values()))
    return SequencePlan(tuple(pairs.values()), tuple(faults), tuple(unmatched))


def _load(conn: Connection, tables: list[int], schemas: set[str]) -> _Catalog:
    rows = query(conn, read_query("sequences"), tables, sorted(schemas))
    by_name: dict[TableName, SequenceInfo] = {}
    by_column: dict[tuple[int, str], dict[int, SequenceInfo]] = {}
    unused = []
    for oid, schema, name, increment, minimum, maximum, relation, column, _ in rows:
        info = SequenceInfo((schema, name), oid, increment, minimum, maximum)
        by_name[info.name] = info
        if relation is None:
            unused.append(info)
        else:
            by_column.setdefault((relation, column), {})[oid] = info
    columns = {key: tuple(found.values()) for key, found in by_column.items()}
    return _Catalog(by_name, columns, tuple(unused))


def _missing(route: Route, column: str, sequence: SequenceInfo) -> Fault:
    name = show_table(sequence.name)
    return Fault(
        route.name,
        f"column {column}: the target has no sequence that continues {name} of the source",
        f"make it an identity column, or create {name} on the target and use it in the column's default",
    )


def _direction_faults(pairs: Iterable[SequencePair]) -> list[Fault]:
    return [
        Fault(pair.target.name, "the sequence runs in the opposite direction of the source's",
              f"ALTER SEQUENCE … INCREMENT BY {pair.source.increment} on the target")
        for pair in pairs
        if (pair.source.increment > 0) != (pair.target.increment > 0)
    ]  # fmt: skip


def _privilege_faults(source: Connection, target: Connection, pairs: list[SequencePair]) -> list[Fault]:
    # Not FROM pg_class: of its conditions PostgreSQL may try the function first, which fails for all but sequences.
    statement = """
        SELECT oid::bigint FROM unnest(%s::bigint[]::oid[]) AS s (oid)
        WHERE NOT pg_catalog.has_sequence_privilege(oid, %s)
    """
    unreadable = {oid for (oid,) in query(source, statement, [pair.source.oid for pair in pairs], "SELECT")}
    unwritable = {oid for (oid,) in query(target, statement, [pair.target.oid for pair in pairs], "UPDATE")}
    faults = [
        Fault(pair.source.name, "the source's role may not read this sequence", "GRANT SELECT on it to that role")
        for pair in pairs
        if pair.source.oid in unreadable
    ]
    faults += [
        Fault(pair.target.name, "the target's role may not set this sequence", "GRANT UPDATE on it to that role")
        for pair in pairs
        if pair.target.oid in unwritable
    ]
    return faults


def load_values(source: Connection, pairs: Sequence[SequencePair]) -> list[SequenceValue]:
    """The present state of the source's sequences, one per pair, in one statement."""
    if not pairs:
        return []
    parts = [
        sql.SQL("SELECT {} AS position, last_value, is_called FROM {}").format(
            sql.Literal(position), table_identifier(pair.source.name)
        )
        for position, pair in enumerate(pairs)
    ]
    rows = query(source, sql.SQL(" UNION ALL ").join(parts) + sql.SQL(" ORDER BY position"))
    return [SequenceValue(last_value, is_called) for _, last_value, is_called in rows]


def value_faults(pairs: Sequence[SequencePair], values: Sequence[SequenceValue]) -> list[Fault]:
    """Pairs whose target is too narrow for the source's value, or for the one after it."""
    faults = []
    for pair, value in zip(pairs, values, strict=True):
        if not _fits(pair, value):
            bounds = f"{pair.target.minimum} to {pair.target.maximum}"
            faults.append(
                Fault(
                    pair.target.name,
                    f"the sequence is too narrow ({bounds}) to continue {show_table(pair.source.name)} of the source",
                    "ALTER SEQUENCE … AS bigint with the source's MINVALUE and MAXVALUE, and widen its column",
                )
            )
    return faults


def _fits(pair: SequencePair, value: SequenceValue) -> bool:
    low, high = pair.target.minimum, pair.target.maximum
    if not low <= value.last_value <= high:
        return False
    if not value.is_called:
        return True
    following = value.last_value + pair.target.increment
    spent_here = not low <= following <= high
    spent_there = not pair.source.minimum <= value.last_value + pair.source.increment <= pair.source.maximum
    return spent_there or not spent_here


def set_sequences(
    target: Connection, pairs: Sequence[SequencePair], values: Sequence[SequenceValue]
) -> dict[TableName, SequenceValue]:
    """Set the target's sequences to ``values`` (one per pair); returns what was set, by target sequence.

    Where several sequences of the source continue in one, the furthest counts.

    Raises:
        SchemaMismatch: a sequence of the target is too narrow; none was set.
    """
    faults = value_faults(pairs, values)
    if faults:
        lines = "\n".join(f"{show_table(fault.table)}: {fault.message} — {fault.remedy}" for fault in faults)
        raise SchemaMismatch(lines)
    furthest: dict[int, tuple[SequencePair, SequenceValue]] = {}
    for pair, value in zip(pairs, values, strict=True):
        known = furthest.get(pair.target.oid)
        if known is None or _position(pair, value) > _position(*known):
            furthest[pair.target.oid] = pair, value
    query(
        target,
        """
        SELECT pg_catalog.setval(oid::bigint::oid::regclass, last_value, is_called)
        FROM unnest(%s::bigint[], %s::bigint[], %s::boolean[]) AS s (oid, last_value, is_called)
        """,
        list(furthest),
        [value.last_value for _, value in furthest.values()],
        [value.is_called for _, value in furthest.values()],
    )
    return {pair.target.name: value for pair, value in furthest.values()}


def _position(pair: SequencePair, value: SequenceValue) -> tuple[int, bool]:
    return value.last_value * (1 if pair.target.increment > 0 else -1), value.is_called
