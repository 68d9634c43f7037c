"""ID maps: one field becomes another by a single dict access.

Keys and values are fields in wire form. ``NULL`` and ``UNCHANGED`` map to themselves, so the hot path
needs no test for them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from replicator.errors import ConfigError, ProtocolError
from replicator.model.row import NULL, UNCHANGED, Field, field


class OnUnmapped(Enum):
    """What becomes of an ID that the map does not hold."""

    KEEP = "keep"
    NULL = "null"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map of the settings. ``columns`` are target columns as (schema, table, column).

    A *table* map is filled by ``users import``; a *lookup* follows column ``key`` → ``value`` of source ``table``.
    """

    name: str
    columns: frozenset[tuple[str, str, str]]
    on_unmapped: OnUnmapped
    table: tuple[str, str] | None = None  # (schema, name) of a lookup's source table; None: a table map
    key: str = ""
    value: str = ""

    @property
    def is_lookup(self) -> bool:
        """Derived from a replicated source table, and kept current by the rows that stream past."""
        return self.table is not None


@dataclass(frozen=True, slots=True, order=True)
class Unmapped:
    """An ID without a target ID, where it was met. ``source_id`` is its text form."""

    map: str
    table: tuple[str, str]
    column: str
    source_id: str


MAPPABLE_TYPES = frozenset({"uuid", "text", "character varying", "bigint", "integer"})


def to_wire(type_name: str, text: str) -> Field:
    """The field of an ID given as text.

    Raises:
        ConfigError: ``text`` is not of that type, or the type cannot be mapped.
    """
    try:
        match type_name:
            case "uuid":
                return field(uuid.UUID(text).bytes)
            case "text" | "character varying":
                return field(text.encode())
            case "bigint":
                return field(int(text).to_bytes(8, "big", signed=True))
            case "integer":
                return field(int(text).to_bytes(4, "big", signed=True))
    except (ValueError, OverflowError):
        raise ConfigError(f"an entry of an ID map is not a valid {type_name}") from None
    raise ConfigError(f"columns of type {type_name} cannot pass through an ID map")


def to_text(type_name: str, value: Field) -> str:
    """The text form of a mapped field; the inverse of `to_wire`.

    Raises:
        ProtocolError: the field is not of that type.
    """
    try:
        match type_name:
            case "uuid":
                return str(uuid.UUID(bytes=value[4:]))
            case "bigint" | "integer":
                return str(int.from_bytes(value[4:], "big", signed=True))
            case _:
                return value[4:].decode()
    except ValueError:
        raise ProtocolError(f"the source sent as {type_name} what is none") from None


class IdMap:
    """The entries of one map for columns of one type. Mutable: lookups follow the stream."""

    __slots__ = ("fields", "name", "type_name")

    def __init__(self, name: str, type_name: str, entries: Iterable[tuple[str, str]] = ()) -> None:
        """``entries`` are (source ID, target ID) as text."""
        self.name = name
        self.type_name = type_name
        self.fields: dict[Field, Field] = {NULL: NULL, UNCHANGED: UNCHANGED}
        for source_id, target_id in entries:
            self.set(source_id, target_id)

    def set(self, source_id: str, target_id: str) -> None:
        """Map ``source_id`` to ``target_id`` from now on."""
        self.fields[to_wire(self.type_name, source_id)] = to_wire(self.type_name, target_id)

    def remove(self, source_id: str) -> None:
        """Forget ``source_id``."""
        self.fields.pop(to_wire(self.type_name, source_id), None)

    def __len__(self) -> int:
        return len(self.fields) - 2


class IdMaps:
    """All maps of a run, by name and column type."""

    __slots__ = ("_by_type", "_texts")

    def __init__(self, entries: dict[str, dict[str, str]] | None = None) -> None:
        """``entries``: map name → {source ID: target ID}, as text."""
        self._texts: dict[str, dict[str, str]] = entries or {}
        self._by_type: dict[tuple[str, str], IdMap] = {}

    def get(self, name: str, type_name: str) -> IdMap:
        """The map ``name`` for columns of ``type_name``; empty if nothing is in it yet."""
        try:
            return self._by_type[name, type_name]
        except KeyError:
            made = IdMap(name, type_name, self._texts.get(name, {}).items())
            return self._by_type.setdefault((name, type_name), made)

    def target_id(self, name: str, source_id: str) -> str | None:
        """What ``source_id`` maps to, as text."""
        return self._texts.get(name, {}).get(source_id)

    def entries(self, name: str) -> Iterable[tuple[str, str]]:
        """(source ID, target ID) of a map, as text."""
        return list(self._texts.get(name, {}).items())

    def change(self, name: str, source_id: str, target_id: str | None) -> None:
        """Set an entry, or remove it (``target_id`` None), for columns of every type."""
        texts = self._texts.setdefault(name, {})
        if target_id is None:
            texts.pop(source_id, None)
        else:
            texts[source_id] = target_id
        for (map_name, _), id_map in self._by_type.items():
            if map_name == name:
                if target_id is None:
                    id_map.remove(source_id)
                else:
                    id_map.set(source_id, target_id)
