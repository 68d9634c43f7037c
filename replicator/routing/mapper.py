"""Compiled routes: a source tuple in, a target row out. The hot path of both phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from struct import Struct

from replicator.errors import UnmappedId
from replicator.model.row import NULL, Field, Row
from replicator.routing.idmap import IdMaps, OnUnmapped, Unmapped, to_text
from replicator.routing.route import Route, RouteColumn

_LENGTH = Struct(">i").unpack_from  # of a field; -1: NULL


class Mapper:
    """A route compiled for source tuples of one column layout.

    ``unmapped`` gathers the IDs that no map knew, until the caller takes them with `take_unmapped`.
    """

    __slots__ = ("_key_of_row", "_key_steps", "_keys", "_pick", "_steps", "route", "unmapped")

    def __init__(self, route: Route, layout: Sequence[str], maps: IdMaps) -> None:
        """``layout``: the names of the source tuple's columns, in its order."""
        self.route = route
        self.unmapped: set[Unmapped] = set()
        at = {name: index for index, name in enumerate(layout)}
        picks = [at[name] for name in route.source_columns]
        self._pick = None if picks == list(range(len(layout))) else _getter(picks)
        self._steps = [
            (index, step)
            for index, column in enumerate(route.columns)
            if (step := self._step(column, maps)) is not None
        ]
        steps = dict(self._steps)
        self._keys = tuple(picks[index] for index in route.key)
        self._key_steps = [(at, steps[index]) for at, index in enumerate(route.key) if index in steps]
        self._key_of_row = _getter(route.key)

    def row(self, values: Row) -> Row:
        """The target row of a source tuple."""
        if self._pick is not None:
            values = self._pick(values)
        if not self._steps:
            return values
        fields = list(values)
        for index, step in self._steps:
            fields[index] = step(fields[index])
        return tuple(fields)

    def copy_row(self, data: bytes) -> bytes:
        """`row` for a COPY row whose fields are those of ``route.source_columns``.

        Only the mapped fields are cut out: to split a row of six columns and join it again takes three times as long.
        """
        pieces = []
        taken = column = 0
        at = 2
        for index, step in self._steps:
            while column < index:
                (length,) = _LENGTH(data, at)
                at += 4 + length if length > 0 else 4
                column += 1
            (length,) = _LENGTH(data, at)
            end = at + 4 + length if length > 0 else at + 4
            pieces.append(data[taken:at])
            pieces.append(step(data[at:end]))
            taken = at = end
            column += 1
        pieces.append(data[taken:])
        return b"".join(pieces)

    def old_key(self, values: Row) -> Row:
        """The target key of a source tuple that may hold nothing but the key."""
        keys = [values[index] for index in self._keys]
        for at, step in self._key_steps:
            keys[at] = step(keys[at])
        return tuple(keys)

    def key_of(self, row: Row) -> Row:
        """The key fields of an already mapped row."""
        return self._key_of_row(row)

    def take_unmapped(self) -> set[Unmapped]:
        """The unmapped IDs met since the last call."""
        taken, self.unmapped = self.unmapped, set()
        return taken

    def _step(self, column: RouteColumn, maps: IdMaps) -> Callable[[Field], Field] | None:
        spec = column.id_map
        if spec is None:
            return column.rewrite
        known = maps.get(spec.name, column.target.type.name).fields.get
        missed = self._missed

        def step(value: Field) -> Field:
            found = known(value)
            return found if found is not None else missed(column, value)

        return step

    def _missed(self, column: RouteColumn, value: Field) -> Field:
        spec = column.id_map
        assert spec is not None
        source_id = to_text(column.target.type.name, value)
        self.unmapped.add(Unmapped(spec.name, self.route.name, column.target.name, source_id))
        match spec.on_unmapped:
            case OnUnmapped.KEEP:
                return value
            case OnUnmapped.NULL:
                return NULL
            case OnUnmapped.STOP:
                raise UnmappedId(
                    f"an ID in {self.route}.{column.target.name} is not in the map {spec.name}",
                    hint="`replicator users status` lists it; add it with `replicator users import`, then start again",
                )


def _getter(indexes: Sequence[int]) -> Callable[[Row], Row]:
    match len(indexes):
        case 0:
            return lambda _: ()
        case 1:
            only = indexes[0]
            return lambda row: (row[only],)
        case _:
            return itemgetter(*indexes)
