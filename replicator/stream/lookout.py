"""Looks at the catalogs of both sides while the stream runs: not all that happens to a table shows in its rows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import psycopg

from replicator.config import Settings
from replicator.errors import StateError, TransientError
from replicator.logs import get_logger
from replicator.model.schema import show_table
from replicator.postgres.connection import Connection, translated
from replicator.routes import refuse_faults
from replicator.routing.route import Route
from replicator.source.publication import require_publication
from replicator.survey import newcomer_message, refuse_drift, survey
from replicator.target.state import load_table_states

log = get_logger(__name__)

_EVERY_S = 30.0
_AFTER_S = 2.0  # the least time between two looks, however often tables are altered or vacuumed
_PATIENCE = "500ms"  # a table that somebody has locked is looked at the next time


class Lookout:
    """Looks from time to time, and soon after the stream has told of an alteration."""

    def __init__(
        self, settings: Settings, routes: Sequence[Route], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``routes``: those that the stream goes by."""
        self._settings, self._routes, self._clock = settings, routes, clock
        self._looked = clock()
        self._told: set[str] = set()

    def is_due(self, *, altered: bool) -> bool:
        """Whether to look now. ``altered``: a relation was announced once more."""
        return self._clock() - self._looked >= (_AFTER_S if altered else _EVERY_S)

    def look(self, source: Connection, target: Connection) -> None:
        """Compare both catalogs with what is recorded.

        Raises:
            SchemaMismatch: to go on would leave wrong values on the target.
            StateError, SlotLost: the publication no longer has all tables.
        """
        self._looked = self._clock()
        try:
            with translated("source"):
                source.execute(f"SET lock_timeout = '{_PATIENCE}'")
            with translated("target"):
                target.execute(f"SET lock_timeout = '{_PATIENCE}'")
            self._compare(source, target)
        except TransientError as exc:
            log.debug("no look at the catalogs this time", reason=exc.message)
        finally:
            for conn in (source, target):
                with contextlib.suppress(psycopg.Error):  # a connection that broke is made anew
                    conn.execute("SET lock_timeout = 0")

    @contextlib.contextmanager
    def explaining(self, source: Connection, target: Connection) -> Iterator[None]:
        """What is wrong within the block may come of an alteration since the last look: then say so."""
        try:
            yield
        except StateError:
            with translated("target"):
                states = load_table_states(target, self._settings.source.slot)
            refuse_drift(survey(self._settings, source, target, states))
            raise

    def _compare(self, source: Connection, target: Connection) -> None:
        with translated("target"):
            states = load_table_states(target, self._settings.source.slot)
        found = survey(self._settings, source, target, states)
        refuse_drift(found)
        refuse_faults(found.faults)
        published = {name: known.published for name, known in states.items()}
        with self.explaining(source, target):
            require_publication(source, self._settings.source.publication, self._routes, published=published)
        for drift in found.notes:
            self._tell(str(drift), show_table(drift.table), drift.message, drift.remedy)
        for name in found.newcomers:
            message, remedy = newcomer_message(name)
            self._tell(message, show_table(name), message, remedy)

    def _tell(self, key: str, table: str, what: str, remedy: str) -> None:
        if key not in self._told:
            self._told.add(key)
            log.warning("source and target have drifted apart", table=table, what=what, remedy=remedy)
