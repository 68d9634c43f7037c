"""Tables and columns as the catalogs of either side describe them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

TableName = tuple[str, str]  # (schema, name), unquoted


def parse_table_name(text: str) -> TableName:
    """Read ``[schema.]name`` (default schema ``public``); no quoting, names as they stand in the catalog."""
    schema, dot, name = text.partition(".")
    return (schema, name) if dot else ("public", schema)


def show_table(name: TableName) -> str:
    """``name`` as people write it: without the schema where that is ``public``."""
    return name[1] if name[0] == "public" else f"{name[0]}.{name[1]}"


def show_tables(names: Iterable[TableName]) -> str:
    """Several tables in a row, for messages."""
    return ", ".join(map(show_table, names))


@dataclass(frozen=True, slots=True)
class Type:
    """A data type of one server.

    ``name`` is schema-qualified except for built-ins (``format_type`` under an empty search_path) and has no
    typmod. ``kind`` is ``pg_type.typtype`` (b base, e enum, d domain, c composite, r range, m multirange).
    """

    oid: int
    name: str
    kind: str
    category: str  # pg_type.typcategory: A array, E enum, S string, …
    has_binary: bool  # both a send and a receive function
    array_oid: int = 0  # pg_type.typarray: the type of an array of these, 0 if none
    element: Type | None = None  # of an array
    base: Type | None = None  # of a domain
    attributes: tuple[tuple[str, Type], ...] = ()  # of a composite
    labels: tuple[str, ...] = ()  # of an enum, in sort order
    equality_schema: str = "pg_catalog"  # where the `=` of its default btree operator class lives


@dataclass(frozen=True, slots=True)
class Column:
    """One live column. ``default`` is its expression as SQL, if any."""

    name: str
    type: Type
    typmod: int
    type_sql: str  # with typmod, as one would declare it: "character varying(256)"
    not_null: bool
    default: str | None
    generated: bool  # GENERATED ALWAYS AS (…) STORED or VIRTUAL
    identity: str  # "" | "a" always | "d" by default


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """``columns`` of this table reference ``ref_columns`` of ``references``."""

    name: str
    columns: tuple[str, ...]
    references: TableName
    ref_columns: tuple[str, ...]
    on_delete: str  # pg_constraint.confdeltype: a no action, r restrict, c cascade, n set null, d set default


@dataclass(frozen=True)
class Table:
    """One table with all that planning needs. ``columns`` are in attnum order, dropped ones left out."""

    name: TableName
    oid: int
    kind: str  # pg_class.relkind: r ordinary, p partitioned
    type_oid: int  # the table's own row type
    type_array_oid: int  # array of its row type
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]  # empty if none
    replica_identity: str  # pg_class.relreplident: d default, n nothing, f full, i index
    identity_index: tuple[str, ...]  # columns of the REPLICA IDENTITY USING INDEX index, else empty
    foreign_keys: tuple[ForeignKey, ...]
    rows_estimate: int  # pg_class.reltuples, partitions summed, never negative
    bytes_estimate: int  # heap + TOAST, partitions summed
    row_security: bool
    owner: str

    @cached_property
    def by_name(self) -> dict[str, Column]:
        """Columns by name."""
        return {column.name: column for column in self.columns}

    @property
    def key(self) -> tuple[str, ...]:
        """Columns that tell one row from another in the change stream; empty if only the whole row does."""
        match self.replica_identity:
            case "d" | "f":
                return self.primary_key
            case "i":
                return self.identity_index
            case _:
                return ()

    def __str__(self) -> str:
        return show_table(self.name)
