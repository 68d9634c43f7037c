"""Prepared statements in one round trip, straight through libpq.

Below psycopg's ``Connection.pipeline`` on purpose: a cursor and a generator per statement take as long as the server
needs for it, and a lone transaction waits for both. And psycopg forgets its prepared statements at every ROLLBACK that
it sees, while planning one for a partitioned table anew takes longer than what it does.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from psycopg import errors, pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result

from replicator.postgres.copy import next_result
from replicator.postgres.session import Connection

_PLACEHOLDER = re.compile(rb"%([%bs])")
_DONE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)

# A statement with the placeholders ``%b`` and ``%s``, as psycopg takes it, and its parameters.
Prepared = tuple[bytes, Sequence[Any]]
_Key = tuple[bytes, tuple[int, ...]]  # the statement, and the types of its parameters


class Pipeline:
    """Of one connection. Each statement is prepared when it is first run, once per types of its parameters."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._names: dict[_Key, bytes] = {}
        self._numbers = itertools.count(1)

    def run(self, statements: Sequence[Prepared]) -> list[int]:
        """Run them all; the number of rows that each has hit, 0 where it counts none.

        Nothing behind a statement that fails is run, and an open transaction is left as failed.

        Raises:
            psycopg.Error: of the first that fails.
        """
        dumped = [self._dump(parameters) for _, parameters in statements]
        pgconn = self._conn.pgconn
        pgconn.nonblocking = 1
        pgconn.enter_pipeline_mode()
        new: dict[_Key, tuple[bytes, int]] = {}  # the name, and which of the results tells whether it is prepared
        places = []  # of the statements among the results
        place = 0
        for (statement, _), (values, types, formats) in zip(statements, dumped, strict=True):
            key = (statement, types)
            name = self._names.get(key) or (new[key][0] if key in new else None)
            if name is None:
                name = b"replicator_%d" % next(self._numbers)
                new[key] = name, place
                pgconn.send_prepare(name, _numbered(statement), types)
                place += 1
            pgconn.send_query_prepared(name, values, formats)
            places.append(place)
            place += 1
        pgconn.pipeline_sync()
        results = self._results()
        pgconn.exit_pipeline_mode()
        self._names |= {key: name for key, (name, at) in new.items() if results[at].status in _DONE}
        for result in results:
            if result.status not in _DONE:
                raise error_from_result(result)
        return [results[at].command_tuples or 0 for at in places]

    def _dump(self, parameters: Sequence[Any]) -> tuple[Sequence[Any], tuple[int, ...], Sequence[pq.Format] | None]:
        if not parameters:
            return (), (), None
        transformer = Transformer(self._conn)
        values = transformer.dump_sequence(parameters, [PyFormat.AUTO] * len(parameters))
        return values, transformer.types or (), transformer.formats

    def _results(self) -> list[pq.abc.PGresult]:
        """All of them, up to the mark that the synchronization leaves."""
        results: list[pq.abc.PGresult] = []
        while True:
            result = next_result(self._conn)
            if result is not None and result.status == pq.ExecStatus.PIPELINE_SYNC:
                return results
            if result is not None:
                results.append(result)
            elif self._conn.pgconn.status != pq.ConnStatus.OK:
                failed = [each for each in results if each.status == pq.ExecStatus.FATAL_ERROR]
                raise error_from_result(failed[0]) if failed else errors.OperationalError("the connection was lost")


def _numbered(statement: bytes) -> bytes:
    """Placeholders as the protocol has them."""
    numbers = itertools.count(1)
    return _PLACEHOLDER.sub(lambda found: b"%" if found[1] == b"%" else b"$%d" % next(numbers), statement)
