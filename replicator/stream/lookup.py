"""Lookup maps kept current by the rows of their source table as these stream past. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from replicator.errors import SchemaMismatch
from replicator.model.row import NULL, UNCHANGED, Row
from replicator.model.schema import TableName
from replicator.routing.idmap import IdMaps, MapSpec, to_text
from replicator.routing.route import Route


@dataclass(frozen=True, slots=True)
class MapChange:
    """An entry was set (``target_id``) or lost (``target_id`` None). ``was``: what it was before, if anything."""

    map: str
    source_id: str
    target_id: str | None
    was: str | None


class LookupFollower:
    """Follows one lookup. Entries change in ``maps`` at once, so that rows later in the stream see them.

    A DELETE brings only the replica identity, so either the key or the value column has to be that identity.
    """

    __slots__ = ("_by_value", "_key_name", "_key_type", "_maps", "_spec", "_value_name", "_value_type")

    def __init__(self, spec: MapSpec, route: Route, maps: IdMaps) -> None:
        """``maps`` hold the lookup's entries as of the checkpoint.

        Raises:
            SchemaMismatch: a column is missing, or neither of them identifies a row.
        """
        columns = route.source.by_name
        for name in (spec.key, spec.value):
            if name not in columns:
                raise SchemaMismatch(f"[id_maps.{spec.name}]: table {route} has no column {name}")
        if route.source.key not in ((spec.key,), (spec.value,)):
            raise SchemaMismatch(
                f"[id_maps.{spec.name}]: neither {spec.key} nor {spec.value} is the replica identity of {route}",
                hint="a deleted row could not be found in the map; choose another key or value column",
            )
        self._spec = spec
        self._maps = maps
        self._key_name, self._value_name = spec.key, spec.value
        self._key_type = columns[spec.key].type.name
        self._value_type = columns[spec.value].type.name
        self._by_value = {target_id: source_id for source_id, target_id in maps.entries(spec.name)}

    def follow(self, layout: Sequence[str], old: Row | None, new: Row | None) -> list[MapChange]:
        """What a change of the lookup's table does to the map. ``old`` None: an INSERT, or the key did not change."""
        key_at, value_at = self._place(layout, self._key_name), self._place(layout, self._value_name)
        before = self._find(old if old is not None else new, key_at, value_at)
        after = None
        if new is not None:
            key, value = self._text(new, key_at, self._key_type), self._text(new, value_at, self._value_type)
            if new[key_at] is UNCHANGED or new[value_at] is UNCHANGED:
                return []
            if key is not None and value is not None:
                after = key, value
        if before == after:
            return []
        changes = []
        if before is not None:
            changes.append(self._remove(*before))
        if after is not None:
            changes.append(self._set(*after))
        return changes

    def _place(self, layout: Sequence[str], name: str) -> int:
        try:
            return layout.index(name)
        except ValueError:
            raise SchemaMismatch(
                f"[id_maps.{self._spec.name}]: the source no longer sends column {name}: it was dropped or renamed",
                hint="correct the map's key and value in the settings, then start again",
            ) from None

    def clear(self) -> list[MapChange]:
        """The table was truncated: every entry is lost."""
        return [self._remove(source_id, target_id) for target_id, source_id in list(self._by_value.items())]

    def _find(self, row: Row | None, key_at: int, value_at: int) -> tuple[str, str] | None:
        """The entry that this row made, found through whichever of its columns identifies it."""
        if row is None:
            return None
        value = self._text(row, value_at, self._value_type)
        if value is not None and value in self._by_value:
            return self._by_value[value], value
        key = self._text(row, key_at, self._key_type)
        if key is None:
            return None
        known = self._maps.target_id(self._spec.name, key)
        return None if known is None else (key, known)

    def _remove(self, source_id: str, target_id: str) -> MapChange:
        self._by_value.pop(target_id, None)
        self._maps.change(self._spec.name, source_id, None)
        return MapChange(self._spec.name, source_id, None, target_id)

    def _set(self, source_id: str, target_id: str) -> MapChange:
        was = self._maps.target_id(self._spec.name, source_id)
        self._by_value[target_id] = source_id
        self._maps.change(self._spec.name, source_id, target_id)
        return MapChange(self._spec.name, source_id, target_id, was)

    @staticmethod
    def _text(row: Row, at: int, type_name: str) -> str | None:
        value = row[at]
        return None if value in (NULL, UNCHANGED) else to_text(type_name, value)


def followers(
    specs: Iterable[MapSpec], routes: Iterable[Route], maps: IdMaps
) -> dict[TableName, tuple[LookupFollower, ...]]:
    """By source table, who follows its rows.

    Raises:
        SchemaMismatch: a lookup cannot be followed.
    """
    by_source = {route.source.name: route for route in routes}
    found: dict[TableName, tuple[LookupFollower, ...]] = {}
    for spec in specs:
        if spec.table is not None:
            found[spec.table] = (*found.get(spec.table, ()), LookupFollower(spec, by_source[spec.table], maps))
    return found
