"""A RELATION message held against its route: which column of the source each of its columns is, and whether it fits."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, replace

from replicator import pgoutput
from replicator.errors import SchemaMismatch
from replicator.model.schema import Table, Type
from replicator.routing.drift import add_column, rounds
from replicator.routing.lineage import GONE, is_guess, trace
from replicator.routing.record import TableRecord
from replicator.routing.route import Route, RouteColumn
from replicator.routing.wire import fit

# Types that a column may have had before: their OIDs are the same on every server.
_BUILT_IN = {
    oid: Type(oid, name, "b", category, True)
    for oid, name, category in (
        (20, "bigint", "N"), (21, "smallint", "N"), (23, "integer", "N"),
        (25, "text", "S"), (1043, "character varying", "S"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """What a relation sends, read through the route."""

    route: Route  # for rows of this shape
    attnums: tuple[int, ...]  # of the columns sent, `GONE` for those that were dropped since
    layout: tuple[str, ...]  # their names as the route knows them


def fit_relation(
    route: Route,
    relation: pgoutput.Relation,
    *,
    record: TableRecord | None = None,
    seen: Collection[int] = (),
    ignore_new: bool = False,
    settled: Collection[Hashable] = (),
) -> Shape:
    """Hold a RELATION message against the route; the route for rows of this shape.

    The catalog that the route was planned from may be ahead of the stream: a column that was added later is not
    sent yet, and keeps the target's default meanwhile; one that was renamed comes under its old name; the values of one
    that was dropped since are of no use any more.

    Args:
        record: what is known of the table's columns; None: the catalog, all of it since the snapshot.
        seen: attnums of the shape before this one.
        ignore_new: let columns pass that the route does not know.

    Raises:
        SchemaMismatch: naming the column and the remedy.
    """
    names = tuple(column.name for column in relation.columns)
    attnums = trace(names, route.source, record)
    if attnums is None:
        raise _unreadable(route, names, record)
    doubt = ("shape", relation.oid, names)
    if doubt not in settled and is_guess(names, route.source, record):
        exc = _unreadable(route, names, record)
        exc.doubt = doubt
        raise exc
    by_attnum = route.source.by_attnum
    layout = tuple(
        by_attnum[a].name if a != GONE else f"{name} (dropped)" for a, name in zip(attnums, names, strict=True)
    )
    sent = dict(zip(layout, relation.columns, strict=True))
    always = {a for a, column in record.by_attnum.items() if column.copied} if record is not None else by_attnum.keys()
    missing = [column for column in route.columns if column.source.name not in sent]
    for column in missing:
        if column.source.attnum in always or column.source.attnum in seen:
            raise _no_longer_sent(route, [column.source.name])
    _check_unknown(route, [name for name, a in zip(layout, attnums, strict=True) if a != GONE], record, ignore_new)
    columns = tuple(
        _typed(route, column, sent[column.source.name], settled) for column in route.columns if column not in missing
    )
    fitted = route
    if columns != route.columns:
        defaulted = (*route.defaulted, *(column.target.name for column in missing))
        fitted = replace(route, columns=columns, defaulted=defaulted)
    source = _with_identity(route, relation, layout)
    if source != route.source:
        fitted = replace(fitted, source=source)
    return Shape(fitted, attnums, layout)


def _typed(
    route: Route, column: RouteColumn, sent: pgoutput.RelationColumn, settled: Collection[Hashable]
) -> RouteColumn:
    """The column for fields of the type that is sent, which may not be today's."""
    source = column.source
    if sent.type_oid == source.type.oid:
        doubt = ("typmod", route.source.oid, source.attnum, sent.typmod)
        if (
            sent.typmod != source.typmod
            and doubt not in settled
            and rounds(source.type.name, sent.typmod, column.target.typmod)
        ):
            exc = _type_changed(route, column)
            exc.doubt = doubt
            raise exc
        return column
    past = _BUILT_IN.get(sent.type_oid)
    if past is None or column.id_map is not None or source.type.oid not in _BUILT_IN:
        raise _type_changed(route, column)
    how = fit(past, column.target.type)
    if how.fault:
        raise _type_changed(route, column)
    return replace(column, rewrite=how.rewrite)


def _with_identity(route: Route, relation: pgoutput.Relation, layout: tuple[str, ...]) -> Table:
    """The source as it was for this shape: by what its rows are told apart is for each shape to say."""
    source = route.source
    flagged = tuple(name for name, column in zip(layout, relation.columns, strict=True) if column.is_key)
    identity = relation.replica_identity
    homes = set(route.source_columns)
    key = source.primary_key if identity == "f" else flagged if identity in "di" else ()
    if not set(key) <= homes & set(layout):
        if identity != "f":
            raise SchemaMismatch(
                f"{route}: the key columns of the source table have changed: rows were told apart by "
                f"{', '.join(flagged)}",
                hint=_again(route, "give every key column a home on the target"),
            )
        key = ()  # then the old row tells, all of it
    if identity == source.replica_identity and set(key) == set(source.key):
        return source
    return replace(
        source,
        replica_identity=identity,
        primary_key=key if identity != "i" else source.primary_key,
        identity_index=key if identity == "i" else (),
    )


def _check_unknown(route: Route, sent: list[str], record: TableRecord | None, ignore_new: bool) -> None:
    if record is None or ignore_new:
        return
    source = route.source
    new = [n for n in sent if n in route.dropped and source.by_name[n].attnum not in record.by_attnum]
    if new:
        statements = "; ".join(add_column(route, source.by_name[name], record) for name in new)
        raise SchemaMismatch(
            f"{route}: the source sends a column that the route does not know: {', '.join(new)}",
            hint=f'add it to the target: {statements}; or set on_new_column = "ignore" under [stream]; then start '
            "again",
        )


def _unreadable(route: Route, names: tuple[str, ...], record: TableRecord | None) -> SchemaMismatch:
    """No reading of this shape fits the catalog: say what it looks like."""
    known = set(route.source.by_name)
    expected = known
    if record is not None:
        for column in record.columns:
            known.update(column.names)
        expected = {c.name for c in route.source.columns if (r := record.by_attnum.get(c.attnum)) and r.copied}
    unknown = [name for name in names if name not in known]
    absent = [c.name for c in route.source.columns if c.name in expected and c.name not in names]
    if unknown and absent:
        return SchemaMismatch(
            f"{route}: the source sends column {', '.join(unknown)}, which the route does not know, and no longer "
            f"{', '.join(absent)}",
            hint="if it was renamed, rename it on the target too; if it is new, add it to the target; or route it in "
            f"the settings; then start again; {_last_resort(route)}",
        )
    if unknown:
        return SchemaMismatch(
            f"{route}: the source sends a column that the route does not know: {', '.join(unknown)}",
            hint='add it to the target, or set on_new_column = "ignore" under [stream], then start again; '
            + _last_resort(route),
        )
    if absent:
        return _no_longer_sent(route, absent)
    return SchemaMismatch(
        f"{route}: the columns of the source table have changed since: {', '.join(names)} can be read in several ways",
        hint=_again(route, "make the target's columns the same"),
    )


def _no_longer_sent(route: Route, names: list[str]) -> SchemaMismatch:
    return SchemaMismatch(
        f"{route}: the source no longer sends column {', '.join(names)}: it was dropped or renamed",
        hint=_again(route, "drop or rename it on the target too, or route it in the settings"),
    )


def _type_changed(route: Route, column: RouteColumn) -> SchemaMismatch:
    return SchemaMismatch(
        f"{route}: the type of source column {column.source.name} has changed",
        hint=_again(route, "change it on the target too"),
    )


def _again(route: Route, remedy: str) -> str:
    return f"{remedy}, then start again; {_last_resort(route)}"


def _last_resort(route: Route) -> str:
    # Changes from before the alteration that still wait in the slot come in the old shape, whatever is started anew.
    return f"should that not help, copy the table again first: `replicator snapshot --table {route}`"
