"""Well-formed messages as no server orders them: `python -m tests.stream.fuzz_assembler [--seed N] [--count N]`."""

from __future__ import annotations

import argparse
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from replicator import pgoutput
from replicator.errors import ReplicatorError
from replicator.model.lsn import Lsn
from replicator.model.row import NULL, UNCHANGED, Row
from replicator.model.row import field as wire_field
from replicator.model.schema import Type
from replicator.routing.idmap import IdMaps, MapSpec, OnUnmapped
from replicator.routing.record import record_of
from replicator.stream.batch import Batch, coalesce
from tests.routing.tables import INT, TEXT, UUID, column, route, table
from tests.stream.made import Wire, relation_of

_MOODS = Type(5000, "public.mood[]", "b", "A", True, element=Type(90_000, "public.mood", "e", "E", True))
_KEYED = table("keyed", [column("id"), column("a"), column("b", TEXT)], key=("id",))
_FULL = table("full", [column("id", UUID), column("a")], key=("id",), identity="f")
_KEYLESS = table("keyless", [column("a"), column("b")], identity="f")
_PEOPLE = table("people", [column("user", UUID), column("id"), column("name", TEXT)], key=("id",))
_MAPPED = table("mapped", [column("id"), column("owner", UUID), column("by", TEXT), column("n")], key=("id", "owner"))
_ARRAYS = table("arrays", [column("id"), column("m", _MOODS)], key=("id",))
_ARRAYS_THERE = replace(_ARRAYS, columns=(_ARRAYS.columns[0], replace(_ARRAYS.columns[1], type=replace(_MOODS, oid=5001,
    element=Type(90_001, "public.mood", "e", "E", True)))))  # fmt: skip
_SOURCES = [_KEYED, _FULL, _KEYLESS, _PEOPLE, _MAPPED, _ARRAYS]
_STRANGER = table("stranger", [column("id")], key=("id",))
_USERS = [uuid.UUID(bytes=bytes([n]) * 16) for n in range(4)]
_UUIDS = [wire_field(each.bytes) for each in _USERS]
_FIELDS = [
    NULL, UNCHANGED, *_UUIDS, wire_field(b""), wire_field(b"\0\0\0\1"), wire_field(b"\0\0\0\2"), wire_field(b"text"),
    wire_field(b"\xff\xfe"), wire_field(b"\0" * 12),
    wire_field(b"\0\0\0\1\0\0\0\0\0\1\x5f\x90\0\0\0\1\0\0\0\1\0\0\0\3sad"),
    wire_field(b"\x7f\xff\xff\xff" * 5), pgoutput.TextField(wire_field(b"7")),
]  # fmt: skip
_TIMES = (0, 5, 838_166_400_000_000, -1, 2**63 - 1, -(2**63))


def _maps(rng: random.Random) -> list[MapSpec]:
    policy = rng.choice(list(OnUnmapped))
    return [
        MapSpec("users", frozenset({("public", "mapped", "owner")}), policy),
        MapSpec("names", frozenset({("public", "mapped", "by")}), policy, ("public", "people"), "user", "id"),
    ]


def _wire(rng: random.Random) -> Wire:
    specs = _maps(rng)
    routes = [
        route(source, _ARRAYS_THERE if source is _ARRAYS else source, maps=specs if source is _MAPPED else ())
        for source in _SOURCES
    ]
    known = {made.name: record_of(made) for made in routes if rng.random() < 0.5}
    return Wire(
        routes,
        maps=IdMaps({"users": {str(_USERS[0]): str(_USERS[1])}, "names": {}}),
        lookups=specs[1:],
        snapshot_lsns={made.name: Lsn(rng.choice((0, 0, 300))) for made in routes},
        records=known,
        ignore_new=rng.random() < 0.5,
        applied=rng.choice((0, 0, 150)),
        part_rows=rng.choice((1, 3, 1000)),
        announce=rng.random() < 0.8,
    )


@dataclass
class Session:
    """One stream from its start to its first error. Counts what was sent, and what came out."""

    rng: random.Random
    oddness: float  # how often something is as no server sends it
    wire: Wire = field(init=False)
    lsn: int = 100
    open_at: int | None = None
    xid: int | None = None  # of the transaction in progress
    in_piece: bool = False
    sent: int = 0
    batches: list[Batch] = field(default_factory=list)
    shapes: dict[int, int] = field(default_factory=dict)  # relation OID → number of columns

    def __post_init__(self) -> None:
        self.wire = _wire(self.rng)
        self.shapes = {each.oid: len(each.columns) for each in _SOURCES}

    def next(self) -> pgoutput.Message:
        """What comes next: as a rule what a server would send."""
        rng = self.rng
        if self.is_odd():
            return rng.choice(_ODD)(self)
        if self.open_at is None:
            return rng.choice((_begin, _begin, _begin, _piece, _relation, _message))(self)
        if self.xid is not None and not self.in_piece:
            return rng.choice((_piece, _piece, _commit_in_progress))(self)
        end = _commit if self.xid is None else _end_of_piece
        return rng.choice((_insert, _insert, _update, _update, _delete, _truncate, _relation, _message, end))(self)

    def is_odd(self) -> bool:
        return self.rng.random() < self.oddness

    def feed(self, message: pgoutput.Message) -> None:
        batch = self.wire.send(message, size=self.rng.choice((0, 10, 10_000)))
        self._take(batch)
        if self.rng.random() < 0.1:
            self._take(self.wire.assembler.take())
        if isinstance(message, pgoutput.Begin):
            self.open_at = message.final_lsn
        elif isinstance(message, pgoutput.Commit | pgoutput.StreamCommit):
            self.open_at = self.xid = None
        elif isinstance(message, pgoutput.StreamStart):
            self.open_at, self.xid, self.in_piece = self.lsn, message.xid, True
        elif isinstance(message, pgoutput.StreamStop):
            self.in_piece = False
        elif isinstance(message, pgoutput.Relation):
            self.shapes[message.oid] = len(message.columns)
        self.sent += self._counts(message)

    def _take(self, batch: Batch | None) -> None:
        if batch is not None:
            self.batches.append(batch)
            for changes in (True, False):
                coalesce(batch.events, key_changes=changes)

    def _counts(self, message: pgoutput.Message) -> bool:
        """Whether this must come out as an event: nothing may be left out silently."""
        if not isinstance(message, pgoutput.Insert | pgoutput.Update | pgoutput.Delete) or self.open_at is None:
            return False
        if self.xid is not None:
            return True  # or it is refused as too early
        if self.open_at < self.wire.assembler._applied:
            return False
        return self.open_at >= self.wire.relations.by_oid[message.relation_oid].skip_before

    def check(self) -> int:
        """All changes that were accepted are in the batches, the open one included; how many."""
        self._take(self.wire.assembler.take())
        events = [event for batch in self.batches for event in batch.events] + (self.wire.assembler._events or [])
        found = sum(type(event) is tuple for event in events)
        assert found == self.sent, f"{self.sent} changes were accepted, {found} came out"
        return found


def _session(rng: random.Random) -> Session:
    return Session(rng, rng.choice((0.0, 0.0001, 0.001, 0.01)))


def _row(session: Session, oid: int) -> Row:
    width = session.shapes.get(oid, 2)
    if session.is_odd():
        width = max(0, width + session.rng.choice((-2, -1, 1, 5)))
    source = next((each for each in _SOURCES if each.oid == oid), None)
    return tuple(_value(session, source.columns[at].type if source and at < len(source.columns) else INT)
                 for at in range(width))  # fmt: skip


def _value(session: Session, type_: Type) -> bytes:
    rng = session.rng
    if session.is_odd():
        return rng.choice(_FIELDS)
    match type_.name:
        case "uuid":
            return rng.choice(_UUIDS)
        case "integer":
            return wire_field(rng.randrange(4).to_bytes(4, "big"))
        case "text":
            return wire_field(rng.choice((b"1", b"2", b"x")))
        case _:
            return rng.choice(_FIELDS)


def _oid(session: Session) -> int:
    odd = 0, _STRANGER.oid, 4_294_967_295
    return session.rng.choice(odd) if session.is_odd() else session.rng.choice(_SOURCES).oid


def _begin(session: Session) -> pgoutput.Message:
    session.lsn += session.rng.randrange(1, 40)
    return pgoutput.Begin(Lsn(session.lsn), session.rng.choice(_TIMES), 1)


def _commit(session: Session) -> pgoutput.Message:
    lsn = session.open_at or session.lsn
    time_us = session.rng.choice(_TIMES) if session.is_odd() else 5
    return pgoutput.Commit(0, Lsn(lsn), Lsn(lsn + (0 if session.is_odd() else 8)), time_us)


def _piece(session: Session) -> pgoutput.Message:
    xid = session.rng.randrange(1, 4) if session.xid is None or session.is_odd() else session.xid
    return pgoutput.StreamStart(xid, (session.xid is None) != session.is_odd())


def _end_of_piece(_: Session) -> pgoutput.Message:
    return pgoutput.StreamStop()


def _commit_in_progress(session: Session) -> pgoutput.Message:
    session.lsn = max(session.lsn, session.wire.assembler._applied) + session.rng.randrange(1, 40)
    lsn = session.rng.randrange(session.lsn) if session.is_odd() else session.lsn
    return pgoutput.StreamCommit(session.xid or 1, pgoutput.Commit(0, Lsn(lsn), Lsn(lsn + 8), 5))


def _abort(session: Session) -> pgoutput.Message:
    return pgoutput.StreamAbort(session.xid or 1, session.rng.randrange(1, 4))


def _insert(session: Session) -> pgoutput.Message:
    oid = _oid(session)
    return pgoutput.Insert(oid, _row(session, oid))


def _update(session: Session) -> pgoutput.Message:
    oid = _oid(session)
    old = _row(session, oid) if session.rng.random() < 0.5 else None
    return pgoutput.Update(oid, old, old is not None and session.rng.random() < 0.5, _row(session, oid))


def _delete(session: Session) -> pgoutput.Message:
    oid = _oid(session)
    return pgoutput.Delete(oid, _row(session, oid), session.rng.random() < 0.5)


def _truncate(session: Session) -> pgoutput.Message:
    oids = tuple(_oid(session) for _ in range(session.rng.randrange(4)))
    return pgoutput.Truncate(oids, session.rng.random() < 0.5, session.rng.random() < 0.5)


def _message(session: Session) -> pgoutput.Message:
    rng = session.rng
    transactional = session.open_at is not None and rng.random() < 0.5
    content = rng.choice((b"fence:abc", b"fence:\0", b"fence:\xff", b"heartbeat", b"", b"fence:" + b"x" * 9999))
    return pgoutput.LogicalMessage(
        transactional, Lsn(rng.randrange(2**63)), rng.choice(("replicator", "", "x")), content
    )


def _relation(session: Session) -> pgoutput.Message:
    rng = session.rng
    source = rng.choice([*_SOURCES, _STRANGER])
    message = relation_of(source)
    if not session.is_odd():
        return message
    columns = list(message.columns)
    match rng.randrange(6):
        case 0:
            columns = columns[:-1]
        case 1:
            columns.append(pgoutput.RelationColumn(False, rng.choice(("new", "id", "a")), 23, -1))
        case 2:
            rng.shuffle(columns)
        case 3:
            columns[0] = replace(columns[0], is_key=not columns[0].is_key)
        case 4:
            columns[-1] = replace(columns[-1], type_oid=1700)
        case _:
            return replace(message, replica_identity=rng.choice("dnfi"), name=rng.choice((message.name, "stranger")))
    return replace(message, columns=tuple(columns))


def _odd_commit(session: Session) -> pgoutput.Message:
    lsn = session.rng.choice((0, session.lsn, session.lsn + 1, 2**64 - 9))
    return pgoutput.Commit(0, Lsn(lsn), Lsn(lsn + 8), 5)


def _odd_begin(session: Session) -> pgoutput.Message:
    return pgoutput.Begin(Lsn(session.rng.choice((0, 1, session.lsn, session.lsn - 5, 2**64 - 9))), 5, 1)


_ODD: Sequence[Callable[[Session], pgoutput.Message]] = (
    _odd_commit, _odd_begin, _begin, _commit, _insert, _update, _delete, _truncate, _message, _relation,
    _piece, _end_of_piece, _commit_in_progress, _abort,
    lambda _: pgoutput.Origin(Lsn(5), "elsewhere"), lambda _: pgoutput.TypeMessage(90_000, "public", "mood"),
    lambda _: pgoutput.LogicalMessage(True, Lsn(5), "replicator", b"fence:late"),
)  # fmt: skip


def fuzz(count: int, seed: int) -> Counter[str]:
    """Feed `count` messages; how many changes came out, and how many errors of which class. Any other error raises."""
    rng = random.Random(seed)
    result: Counter[str] = Counter()
    session = _session(rng)
    fed: list[pgoutput.Message] = []
    for _ in range(count):
        message = session.next()
        fed.append(message)
        try:
            session.feed(message)
        except ReplicatorError as exc:
            result[type(exc).__name__] += 1
            result["changes"] += session.check()
            session = _session(rng)
            fed = []
            continue
        except BaseException as exc:
            raise AssertionError(f"seed {seed}: {type(exc).__name__} from {fed[-20:]!r}") from exc
        if len(fed) >= 300:
            result["changes"] += session.check()
            session = _session(rng)
            fed = []
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1_000_000)
    arguments = parser.parse_args()
    start = time.monotonic()
    found = fuzz(arguments.count, arguments.seed)
    print(f"seed {arguments.seed}: {dict(found)} in {time.monotonic() - start:.0f} s")  # noqa: T201 — a script


if __name__ == "__main__":
    main()
