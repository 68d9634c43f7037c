"""Read rows of either side, and route those of the source, without keeping them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b

from psycopg import pq, sql
from psycopg.errors import OperationalError, error_from_result

from replicator.model.row import NULL, Row, field, join, split
from replicator.postgres.connection import Connection, Side, translated
from replicator.postgres.copy import copy_out
from replicator.postgres.session import wait_readable
from replicator.routing.idmap import IdMaps, OnUnmapped
from replicator.routing.mapper import Mapper
from replicator.routing.route import Route, RouteColumn
from replicator.verify.keys import Key
from replicator.verify.plan import Plan
from replicator.verify.snapshot import Sessions

Streams = Callable[[], tuple[Iterator[bytes], Iterator[bytes]]]  # both sides from the start, in the target's form


def digest(row: bytes) -> bytes:
    """16 bytes that stand for a row."""
    return blake2b(row, digest_size=16).digest()


class Router:
    """Source rows, as a plan selects them, into the target's form."""

    def __init__(self, plan: Plan, maps: IdMaps) -> None:
        route = _by_position(plan.route)
        self._width = len(route.columns)
        self._mapper = Mapper(route, route.source_columns, maps)
        self._stops = {spec.name for spec in plan.route.maps if spec.on_unmapped is OnUnmapped.STOP}
        self._verbatim = plan.route.is_verbatim

    def fields(self, fields: Row) -> Row:
        """The routed row. One whose unmapped ID would stop the stream gets a field too many, so it equals none."""
        mapper, width = self._mapper, self._width
        routed = mapper.row(fields[:width]) + fields[width:]
        if mapper.unmapped:
            taken = mapper.take_unmapped()
            if any(each.map in self._stops for each in taken):
                routed += (NULL,)
        return routed

    def rows(self, rows: Iterator[bytes]) -> Iterator[bytes]:
        """Routed rows; COPY's form in and out."""
        if self._verbatim:
            return rows
        route = self.fields
        return (join(route(split(row))) for row in rows)


def _by_position(route: Route) -> Route:
    """The same route with source columns named by position, since the plan selects one for each target column.

    Unmapped IDs are kept: what that means is decided by `Router.fields`.
    """
    columns = [
        RouteColumn(
            replace(column.source, name=str(at)),
            column.target,
            column.rewrite,
            replace(column.id_map, on_unmapped=OnUnmapped.KEEP)
            if column.id_map is not None and column.id_map.on_unmapped is OnUnmapped.STOP
            else column.id_map,
        )
        for at, column in enumerate(route.columns)
    ]
    source = replace(route.source, replica_identity="n")
    return replace(route, source=source, columns=tuple(columns))


def stream_rows(conn: Connection, side: Side, plan: Plan) -> Iterator[bytes]:
    """All rows of one side's table, as COPY sends them."""
    with translated(side):
        yield from copy_out(conn, plan.copy(side))


def open_streams(plan: Plan, sessions: Sessions, maps: IdMaps) -> Streams:
    """A function that opens both sides' rows anew, in the target's form: (source, target)."""

    def streams() -> tuple[Iterator[bytes], Iterator[bytes]]:
        source = stream_rows(sessions.get("source"), "source", plan)
        target = stream_rows(sessions.get("target"), "target", plan)
        return Router(plan, maps).rows(source), target

    return streams


def find_rows(conn: Connection, side: Side, statement: sql.Composed, plan: Plan, keys: Sequence[Key]) -> Iterator[Row]:
    """The rows of ``statement``, whose parameters are the columns of ``keys``, one by one as fields."""
    with translated(side):
        pgconn = conn.pgconn
        columns = plan.key.columns
        pgconn.send_query_params(
            statement.as_bytes(conn),
            [_array(column.element_oid, [key[at] for key in keys]) for at, column in enumerate(columns)],
            param_types=[column.array_oid for column in columns],
            param_formats=[pq.Format.BINARY] * len(columns),
            result_format=pq.Format.BINARY,
        )
        pgconn.set_single_row_mode()
        while (result := _next_result(conn)) is not None:
            match result.status:
                case pq.ExecStatus.SINGLE_TUPLE:
                    yield _fields(result)
                case pq.ExecStatus.TUPLES_OK:
                    pass
                case _:
                    while _next_result(conn) is not None:
                        pass
                    raise error_from_result(result)


def _next_result(conn: Connection) -> pq.abc.PGresult | None:
    pgconn = conn.pgconn
    while pgconn.flush() == 1:
        if wait_readable(conn, or_writable=True):
            pgconn.consume_input()
    while pgconn.is_busy():
        wait_readable(conn)
        pgconn.consume_input()
    result = pgconn.get_result()
    if result is None and pgconn.status != pq.ConnStatus.OK:
        raise OperationalError("the connection was lost while rows were read")
    return result


def _fields(result: pq.abc.PGresult) -> Row:
    values = (result.get_value(0, at) for at in range(result.nfields))
    return tuple([NULL if value is None else field(value) for value in values])


def _array(element_oid: int, fields: Iterable[bytes]) -> bytes:
    """A one-dimensional array in binary form: its elements are fields as they are.

    Source: PostgreSQL, array_recv.
    """
    elements = list(fields)
    header = (1, 0, element_oid, len(elements), 1)  # dimensions, no NULLs, element type, length, lower bound
    return b"".join([*(number.to_bytes(4, "big") for number in header), *elements])
