"""Tables of the stream and messages, made by hand."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

from replicator import pgoutput
from replicator.model.lsn import ZERO, Lsn
from replicator.model.row import NULL, Field, Row
from replicator.model.schema import Table, TableName
from replicator.routing.idmap import IdMaps, MapSpec
from replicator.routing.record import TableRecord
from replicator.routing.route import Route
from replicator.stream.assembler import Assembler
from replicator.stream.batch import Batch
from replicator.stream.lookup import LookupFollower
from replicator.stream.relations import Relations, RoutedTable
from tests.routing.tables import column, number, route, table


def relation_of(source: Table, **changes: Any) -> pgoutput.Relation:
    """What the server says of a table."""
    flagged = {c.name for c in source.columns} if source.replica_identity == "f" else set(source.key)
    given: dict[str, Any] = {
        "oid": source.oid, "namespace": source.name[0], "name": source.name[1],
        "replica_identity": source.replica_identity,
        "columns": tuple(pgoutput.RelationColumn(c.name in flagged, c.name, c.type.oid, c.typmod)
                         for c in source.columns if not c.generated),
    }  # fmt: skip
    return pgoutput.Relation(**(given | changes))


def routed(made: Route, maps: IdMaps | None = None, skip_before: Lsn = ZERO) -> RoutedTable:
    return RoutedTable(made, relation_of(made.source), maps or IdMaps(), skip_before, ())


def simple(name: str = "t", *, key: Sequence[str] = ("id",), extra: bool = False, identity: str = "d") -> RoutedTable:
    """A table (id, a, b) of integers; ``extra``: the target has one more column, with a default."""
    columns = [column("id"), column("a"), column("b")]
    more = [column("kept", default="0")] if extra else []
    source = table(name, columns, key=key, identity=identity)
    return routed(route(source, table(name, [*columns, *more], key=key)))


def row(*values: int | Field | None) -> Row:
    return tuple(NULL if v is None else v if isinstance(v, bytes) else number(v) for v in values)


class Wire:
    """A source that sends what it is told, and the assembler that listens."""

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        maps: IdMaps | None = None,
        lookups: Iterable[MapSpec] = (),
        snapshot_lsns: Mapping[TableName, Lsn] | None = None,
        records: Mapping[TableName, TableRecord] | None = None,
        ignore_new: bool = False,
        applied: int = 0,
        part_rows: int = 1000,
        part_bytes: int = 1 << 30,
        unmapped_before: Iterable[tuple[str, str]] = (),
        announce: bool = True,
        settled: Collection[Hashable] = (),
    ) -> None:
        self.routes = list(routes)
        self.maps = maps or IdMaps()
        by_source = {made.source.name: made for made in self.routes}
        self.relations = Relations(
            self.routes,
            self.maps,
            {spec.table: (LookupFollower(spec, by_source[spec.table], self.maps),) for spec in lookups if spec.table},
            snapshot_lsns=snapshot_lsns or {},
            records=records or {},
            ignore_new_columns=ignore_new,
            settled=settled,
        )
        self.assembler = Assembler(
            self.relations,
            applied=Lsn(applied),
            unmapped_before=set(unmapped_before),
            part_rows=part_rows,
            part_bytes=part_bytes,
        )
        for made in self.routes if announce else ():
            self.send(relation_of(made.source))

    def send(self, message: pgoutput.Message, size: int = 10) -> Batch | None:
        return self.assembler.feed(message, size)

    def begin(self, commit_lsn: int) -> None:
        self._commit_lsn = commit_lsn
        assert self.send(pgoutput.Begin(Lsn(commit_lsn), 5, 1)) is None

    def commit(self) -> Batch:
        lsn = self._commit_lsn
        full = self.send(pgoutput.Commit(0, Lsn(lsn), Lsn(lsn + 8), 5))
        assert full is None
        batch = self.assembler.take()
        assert batch is not None
        return batch

    def transaction(self, commit_lsn: int, *messages: pgoutput.Message) -> Batch:
        self.begin(commit_lsn)
        for message in messages:
            assert self.send(message) is None
        return self.commit()

    def insert(self, *values: int | Field | None, of: int = 0) -> pgoutput.Insert:
        return pgoutput.Insert(self.routes[of].source.oid, row(*values))

    def update(
        self, *values: int | Field | None, old: Row | None = None, key: bool = True, of: int = 0
    ) -> pgoutput.Update:
        return pgoutput.Update(self.routes[of].source.oid, old, key and old is not None, row(*values))

    def delete(self, *values: int | Field | None, key: bool = True, of: int = 0) -> pgoutput.Delete:
        return pgoutput.Delete(self.routes[of].source.oid, row(*values), key)

    def truncate(self, *of: int, restart: bool = False) -> pgoutput.Truncate:
        return pgoutput.Truncate(tuple(self.routes[at].source.oid for at in of or (0,)), False, restart)


def shown(batch: Batch) -> list[tuple[str, str, Row | None, Row | None]]:
    """The row events of a batch, by name."""
    return [(event[0].value, str(event[1]), event[2], event[3]) for event in batch.events if isinstance(event, tuple)]
