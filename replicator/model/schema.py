"""Tables and columns as the catalogs of either side describe them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from replicator.model.printable import printable

TableName = tuple[str, str]  # (schema, name), unquoted


_QUOTED: Final = re.compile(r'"((?:[^"]|"")+)"')
_NEEDS_QUOTES: Final = re.compile(r'[."]')


def parse_table_name(text: str) -> TableName:
    """Read ``[schema.]name`` (default schema ``public``), names as they stand in the catalog.

    The first dot divides them. A schema or a lone table with a dot in its name, or with a quote in front, stands in
    double quotes, where a quote is doubled, as in SQL.
    """
    quoted = _QUOTED.match(text)
    if quoted is not None and text[quoted.end() :][:1] in ("", "."):
        first, rest = _unquoted(quoted[0]), text[quoted.end() :]
    else:
        first, dot, after = text.partition(".")
        rest = dot + after
    return (first, _unquoted(rest[1:])) if rest else ("public", first)


def parse_column_name(text: str) -> tuple[str, str, str]:
    """Read ``[schema.]table.column``: (schema, table, column). The last dot divides, and double quotes do as above.

    Raises:
        ValueError: there is no dot.
    """
    quoted = re.fullmatch(r'(.+)\.("(?:[^"]|"")+")', text, re.DOTALL)
    table, dot, column = (quoted[1], ".", quoted[2]) if quoted is not None else text.rpartition(".")
    if not dot:
        raise ValueError(f"write a column as table.column, not {text!r}")
    return (*parse_table_name(table), _unquoted(column))


def _unquoted(text: str) -> str:
    return text[1:-1].replace('""', '"') if _QUOTED.fullmatch(text) else text


def show_table(name: TableName) -> str:
    """``name`` as people write it: without the schema where that is ``public``, quoted where it must be."""
    schema, table = name
    return _shown(table) if schema == "public" else f"{_shown(schema)}.{_shown(table)}"


def _shown(name: str) -> str:
    quoted = name.replace('"', '""')
    return printable(f'"{quoted}"' if _NEEDS_QUOTES.search(name) else name)


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
    attnum: int = 0  # stays the same whatever the column is called
    missing: str | None = None  # what rows older than ADD COLUMN … DEFAULT hold (pg_attribute.attmissingval), as text


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """``columns`` of this table reference ``ref_columns`` of ``references``."""

    name: str
    columns: tuple[str, ...]
    references: TableName
    ref_columns: tuple[str, ...]
    on_delete: str  # pg_constraint.confdeltype: a no action, r restrict, c cascade, n set null, d set default
    on_update: str = "a"  # confupdtype: likewise


@dataclass(frozen=True)
class Table:
    """One table with all that planning needs. ``columns`` are in attnum order, dropped ones left out."""

    name: TableName
    oid: int
    kind: str  # pg_class.relkind: r ordinary, p partitioned
    type_oid: int  # the table's own row type
    type_array_oid: int  # array of its row type
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]  # empty if none, or if it is deferrable: rows may share its values meanwhile
    replica_identity: str  # pg_class.relreplident: d default, n nothing, f full, i index
    identity_index: tuple[str, ...]  # columns of the REPLICA IDENTITY USING INDEX index, else empty
    foreign_keys: tuple[ForeignKey, ...]
    rows_estimate: int  # pg_class.reltuples, partitions summed, never negative
    bytes_estimate: int  # heap + TOAST, partitions summed
    row_security: bool
    owner: str
    dropped: tuple[int, ...] = ()  # attnums of columns that are no more
    filenode: int = 0  # of the heap, of all leaves taken together: another one after every rewrite and TRUNCATE
    version: int = 0  # of its columns: another one once any has another name, place or type
    leaves: tuple[tuple[int, str], ...] = ()  # partitions that hold rows: (OID, name as shown)

    @cached_property
    def by_name(self) -> dict[str, Column]:
        """Columns by name."""
        return {column.name: column for column in self.columns}

    @cached_property
    def by_attnum(self) -> dict[int, Column]:
        """Columns by attnum."""
        return {column.attnum: column for column in self.columns}

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
