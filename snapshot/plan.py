"""What to copy, in which pieces and in which order. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from replicator.errors import ConfigError
from replicator.model.schema import TableName, show_table
from replicator.routing.route import Route

# A smaller table takes one worker a second; whether it is its share does not matter.
_SPLIT_BYTES = 16 << 20

# Small tables are copied together, up to these limits.
_GROUP_BYTES = 2 << 20
_GROUP_TABLES = 32

# A guess for tables that were never analyzed; it decides about indexes and progress bars only.
_BYTES_PER_ROW = 128


@dataclass(frozen=True, slots=True)
class PageRange:
    """Heap pages ``first`` ≤ page < ``end``; ``end`` None: to the end, wherever that is by then."""

    first: int
    end: int | None


@dataclass(frozen=True)
class TableCopy:
    """One table's copy. ``parts`` None stands for the whole table in one go."""

    route: Route
    parts: tuple[PageRange | None, ...]
    rows_estimate: int
    bytes_estimate: int

    @property
    def name(self) -> TableName:
        """The target table."""
        return self.route.name


def plan_copies(
    routes: Iterable[Route], pages: Mapping[int, int], *, split_above: int, workers: int, replica: bool
) -> dict[TableName, TableCopy]:
    """The copies of these routes, by target table.

    Args:
        pages: heap pages by the source table's OID.
        split_above: bytes. A table that is more than a worker's share of them all is split too: the others would be
            done, and wait for the one that copies it.
        replica: no foreign key is checked while copying.
    """
    chosen = list(routes)
    share = sum(route.source.bytes_estimate for route in chosen) // workers
    above = min(split_above, max(share, _SPLIT_BYTES))
    return {route.name: _plan(route, pages.get(route.source.oid, 0), above, workers, replica) for route in chosen}


def _plan(route: Route, pages: int, split_above: int, workers: int, replica: bool) -> TableCopy:
    source = route.source
    parts: tuple[PageRange | None, ...] = (None,)
    # With live constraints a row may reference one that another part copies: such a table stays whole.
    refers_to_itself = any(key.references == route.name for key in route.target.foreign_keys)
    if source.kind == "r" and source.bytes_estimate > split_above and (replica or not refers_to_itself):
        parts = split_pages(pages, max(workers, -(-source.bytes_estimate // split_above)))
    rows = source.rows_estimate or source.bytes_estimate // _BYTES_PER_ROW
    return TableCopy(route, parts, rows, source.bytes_estimate)


def grouped(copies: Iterable[TableCopy], *, small_rows: int) -> list[tuple[TableCopy, ...]]:
    """What is copied in one transaction each, largest first: small tables together, any other by itself.

    Sessions, round trips and commits take longer than the rows of a table that fits on a few pages.

    Args:
        small_rows: a table with as many is no small one.
    """
    groups: list[list[TableCopy]] = []
    small: list[TableCopy] = []
    size = 0
    for copy in sorted(copies, key=lambda copy: -copy.bytes_estimate):
        if len(copy.parts) > 1 or copy.rows_estimate >= small_rows or copy.bytes_estimate > _GROUP_BYTES // 2:
            groups.append([copy])
            continue
        if not small or len(small) == _GROUP_TABLES or size + copy.bytes_estimate > _GROUP_BYTES:
            small, size = [], 0
            groups.append(small)
        small.append(copy)
        size += copy.bytes_estimate
    return [tuple(group) for group in sorted(groups, key=lambda group: -sum(copy.bytes_estimate for copy in group))]


def split_pages(pages: int, count: int) -> tuple[PageRange, ...]:
    """At most ``count`` ranges of nearly equal size that cover the whole table, the last one open."""
    count = max(1, min(count, pages))
    edges = [pages * at // count for at in range(count)]
    return tuple(PageRange(first, end) for first, end in zip(edges, [*edges[1:], None], strict=True))


def choose(
    routes: Collection[Route], only: Collection[TableName] | None, exclude: Collection[TableName]
) -> list[Route]:
    """The routes that the options ask for, by target table.

    Raises:
        ConfigError: an option names a table that is not in the plan.
    """
    known = {route.name for route in routes}
    for name in (*(only or ()), *exclude):
        if name not in known:
            raise ConfigError(f"table {show_table(name)} is not in the plan", hint="`replicator plan` lists the tables")
    return [route for route in routes if (only is None or route.name in only) and route.name not in exclude]
