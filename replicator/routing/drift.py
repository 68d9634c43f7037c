"""What has changed on either side since a table was copied or accepted last, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from replicator.model.schema import Column, TableName, show_table
from replicator.routing.idmap import MapSpec
from replicator.routing.record import ColumnRecord, TableRecord, lookups_of, sent_columns
from replicator.routing.route import Route, RouteColumn

_TEXT = frozenset({"text", "character varying"})
_TIMES = frozenset(
    {"timestamp without time zone", "timestamp with time zone", "time without time zone", "time with time zone"}
)
# Defaults that are the same for every row and on every server.
_CONSTANT = re.compile(r"\(?(-?[\d.]+|'(?:[^']|'')*'|true|false)\)?(::[\w\s.\"\[\](),]+)?", re.IGNORECASE)
_REPLACED = "it was dropped and created again, or another table has taken its name"
_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference. ``stops``: to stream on would leave wrong values on the target; else somebody should know."""

    table: TableName  # the target's
    message: str
    remedy: str
    stops: bool = True

    def __str__(self) -> str:
        return f"{show_table(self.table)}: {self.message}"


def find_drift(route: Route, record: TableRecord, lookups: Iterable[MapSpec] = ()) -> Iterator[Drift]:
    """Hold a route, planned from today's catalogs and settings, against the record."""
    again = f"`replicator snapshot --table {route}` copies it anew"
    if route.source.oid != record.source_oid:
        yield Drift(
            route.name,
            f"the source's table is another one than the rows were copied from: {_REPLACED}",
            f"{again}; or do the same on the target",
        )
        return
    if route.target.oid != record.target_oid:
        yield Drift(
            route.name,
            f"the target's table is another one than the rows were copied into: {_REPLACED}",
            f"rename the first one back, or {again}",
        )
        return
    feeding = {column.source.attnum: column for column in route.columns}
    for column in sent_columns(route):
        before = record.by_attnum.get(column.attnum)
        fed = feeding.get(column.attnum)
        if before is None:
            yield from _new_column(route, record, column, fed)
        elif fed is not None and fed.target.attnum == before.home:
            yield from _changed_type(route, before, fed)
            yield from _changed_map(route, before, fed)
        elif fed is not None:
            yield _another_home(route, before, fed)
        elif before.home is not None:
            yield _lost_home(route, record, before, column)
    yield from _dropped_columns(route, record)
    yield from _lost_partitions(route, record)
    for lookup in lookups_of(route, lookups):
        if lookup not in record.lookups:
            yield Drift(route.name, f"[id_maps.{lookup.split(':')[0]}] looks it up, and has not read its rows",
                        f"{again} and reads them")  # fmt: skip


def _new_column(route: Route, record: TableRecord, column: Column, fed: RouteColumn | None) -> Iterator[Drift]:
    """A column that the source has got since."""
    if fed is None:
        yield Drift(route.name, f"column {column.name} is new on the source, and the target has none",
                    f"{add_column(route, column, record)} on the target", stops=False)  # fmt: skip
        return
    home = fed.target
    if any(each.home == home.attnum for each in record.columns):
        yield Drift(
            route.name,
            f"the source's column {column.name} is another one than the rows were copied from: it was dropped and "
            f"added again, and the target's column {home.name} has the values of the old one",
            # With the same done on the target, values of the old column in the slot would go into the new one.
            f"`replicator snapshot --table {route}` copies it anew",
        )
    elif not _same_past(record, route.source.filenode, column, home):
        remedy = f"`replicator snapshot --table {route}` brings them"
        if _is_constant(column):
            drop = f"{_alter(route)} DROP COLUMN {quoted(home.name)}"
            remedy = f"{drop} on the target, then {add_column(route, column, record)}; or {remedy}"
        yield Drift(
            route.name,
            f"column {column.name} was added on the source with a default that its older rows have, "
            "and those of the target have not",
            remedy,
        )


def _same_past(record: TableRecord, filenode: int, column: Column, home: Column) -> bool:
    """Whether rows from before a column was added hold the same on both sides."""
    was_there = home.attnum <= record.target_columns  # rows that were copied got its default then
    if column.missing is not None:
        return home.missing == column.missing or (was_there and home.default == column.default)
    # Without such a value older rows hold NULL, unless they were written anew with the default.
    untouched = filenode == record.filenode
    is_null = untouched or (column.default is None and not column.identity)
    return is_null and home.missing is None and not (was_there and home.default is not None)


def _changed_type(route: Route, before: ColumnRecord, fed: RouteColumn) -> Iterator[Drift]:
    source, target = fed.source, fed.target
    if (source.type.name, source.typmod) == (before.type_name, before.typmod) or source.type_sql == target.type_sql:
        return
    if source.type.name == before.type_name:
        lossy = rounds(source.type.name, source.typmod, target.typmod)
        # What was rounded on the source by the change itself was sent in full before.
        if not lossy and not rounds(source.type.name, before.typmod, source.typmod):
            return
    elif {source.type.name, before.type_name, target.type.name} <= _TEXT:
        return
    yield Drift(
        route.name,
        f"the type of column {source.name} of the source is {source.type_sql} now, that of the target's column "
        f"{target.name} is {target.type_sql}",
        f"{alter_type(route.name, target.name, source)} on the target, with the same USING if there was one; "
        f"or `replicator snapshot --table {route}` after you have changed it otherwise",
    )


def _changed_map(route: Route, before: ColumnRecord, fed: RouteColumn) -> Iterator[Drift]:
    now = fed.id_map.name if fed.id_map is not None else None
    if now != before.id_map:
        said = {name: f"the map {name}" if name else "no map" for name in (now, before.id_map)}
        yield Drift(
            route.name,
            f"column {fed.target.name} passes through {said[now]} by the settings, its rows have passed through "
            f"{said[before.id_map]}",
            f"`replicator snapshot --table {route}` copies it anew; or correct [id_maps]",
        )


def rounds(type_name: str, given: int, taken: int) -> bool:
    """Whether a value of typmod ``given`` may lose digits where ``taken`` is the typmod. -1: none, all digits."""
    if given == taken or taken == -1:
        return False
    if type_name == "numeric":
        return given == -1 or _scale(given) > _scale(taken)
    if type_name in _TIMES:
        return given == -1 or given > taken
    return type_name == "interval"


def _scale(typmod: int) -> int:
    return ((typmod - 4 & 0x7FF) ^ 0x400) - 0x400


def _another_home(route: Route, before: ColumnRecord, fed: RouteColumn) -> Drift:
    if before.home is None:
        message = f"column {fed.source.name} of the source had no home on the target when rows came, and has one now"
    elif before.home in route.target.by_attnum:
        message = f"column {fed.source.name} of the source went to column {route.target.by_attnum[before.home].name}"
    else:
        message = f"the target's column {fed.target.name} was dropped and added again"
    return Drift(route.name, f"{message}: its earlier values are not there",
                 f"`replicator snapshot --table {route}` brings them")  # fmt: skip


def _lost_home(route: Route, record: TableRecord, before: ColumnRecord, column: Column) -> Drift:
    home = route.target.by_attnum.get(before.home or 0)
    if home is None:
        return Drift(
            route.name,
            f"the target no longer has a column for {column.name} of the source: it was dropped",
            f"add it again ({add_column(route, column, record)}) and bring its values back with "
            f"`replicator snapshot --table {route}`",
        )
    routed = f'in the settings: [routes.{route}.columns] {home.name} = "{column.name}"'
    if column.name not in before.names[-1:]:
        return Drift(
            route.name,
            f"column {before.names[-1]} of the source is called {column.name} now, the target's is still {home.name}",
            f"rename it on the target too: {_alter(route)} RENAME {quoted(home.name)} TO {quoted(column.name)}; "
            f"or route it {routed}",
        )
    return Drift(
        route.name,
        f"the target no longer has a column for {column.name} of the source: it is called {home.name} there now",
        f"rename it back: {_alter(route)} RENAME {quoted(home.name)} TO {quoted(column.name)}; or route it {routed}",
    )


def _dropped_columns(route: Route, record: TableRecord) -> Iterator[Drift]:
    live = route.source.by_attnum
    fed = {column.target.attnum for column in route.columns}
    for column in record.columns:
        home = route.target.by_attnum.get(column.home or 0)
        if column.attnum not in live and home is not None and home.attnum not in fed:
            yield Drift(
                route.name,
                f"column {column.names[-1]} was dropped on the source; the target's column {home.name} keeps its last "
                "values, and is not verified",
                f"{_alter(route)} DROP COLUMN {quoted(home.name)} on the target, if they are not wanted",
                stops=False,
            )


def _lost_partitions(route: Route, record: TableRecord) -> Iterator[Drift]:
    present = {oid for oid, _ in route.source.leaves}
    there = {name for _, name in route.target.leaves}
    for oid, name in record.leaves:
        if oid not in present and (name in there or route.target.kind != "p"):
            yield Drift(
                route.name,
                f"partition {name} was dropped or detached on the source: the target keeps its rows",
                f"do the same on the target; or `replicator snapshot --table {route}`",
                stops=False,
            )


# ── statements for the target ──────────────────────────────────────────────────────────────────────────────────


def add_column(route: Route, column: Column, record: TableRecord | None = None) -> str:
    """The statement that gives the target this column of the source, and what its older rows need besides."""
    statement = f"{_alter(route)} ADD COLUMN {quoted(column.name)} {column.type_sql}"
    there = route.target.by_name.get(column.name)
    if there is not None and there.generated:
        return f"{_alter(route)} ALTER COLUMN {quoted(column.name)} DROP EXPRESSION"
    if _is_constant(column) and column.missing is not None:
        return f"{statement} DEFAULT {column.default}{' NOT NULL' if column.not_null else ''}"
    if _is_constant(column) and record is not None and record.filenode == route.source.filenode:
        # The default came later, for new rows alone.
        return f"{statement}; {_alter(route)} ALTER COLUMN {quoted(column.name)} SET DEFAULT {column.default}"
    if column.default is not None or column.identity:
        return f"{statement}, and then `replicator snapshot --table {route}` for the values that its older rows have"
    return statement


def alter_type(table: TableName, name: str, column: Column) -> str:
    """The statement that gives the target's column ``name`` the type of the source's."""
    return f"ALTER TABLE {shown(table)} ALTER COLUMN {quoted(name)} TYPE {column.type_sql}"


def shown(table: TableName) -> str:
    """A table's name for a statement."""
    schema, name = table
    return quoted(name) if schema == "public" else f"{quoted(schema)}.{quoted(name)}"


def quoted(name: str) -> str:
    """A name for a statement."""
    return name if _PLAIN_NAME.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def _alter(route: Route) -> str:
    return f"ALTER TABLE {shown(route.name)}"


def _is_constant(column: Column) -> bool:
    return column.default is not None and _CONSTANT.fullmatch(column.default) is not None
