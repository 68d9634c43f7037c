"""Changes into statements for the target. Composes only: the applier runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

from replicator.model.change import Op
from replicator.model.row import UNCHANGED, Row
from replicator.model.schema import TableName
from replicator.postgres.pipeline import Prepared
from replicator.routing.route import Route
from replicator.stream.batch import Event, Net, RowEvent, Truncation
from replicator.stream.relations import RoutedTable
from replicator.target.rowtypes import RowType
from replicator.target.statements import TableStatements, truncate

# From this many rows on a COPY beats INSERT … FROM unnest.
COPY_FROM_ROWS = 100


@dataclass(frozen=True, slots=True)
class Step:
    """One statement and the rows that it must hit; ``expected`` None: any number. ``table`` is for messages."""

    statement: bytes
    parameters: tuple[object, ...]
    expected: int | None
    op: Op
    table: str

    @property
    def strict(self) -> Prepared:
        """A statement that fails with a division by zero where it hits another number of rows than expected."""
        if self.expected is None:
            return self.statement, self.parameters
        counted = b"WITH hit AS (" + self.statement + b" RETURNING 1) SELECT 1 / (count(*) = %s)::int FROM hit"
        return counted, (*self.parameters, self.expected)


@dataclass(frozen=True, slots=True)
class Copy:
    """Rows for a COPY, which costs a round trip of its own."""

    statement: sql.Composed
    rows: Sequence[Row]
    table: str


class Composer:
    """Makes steps of the net effect of sets, or of single changes in order."""

    def __init__(self, routes: Sequence[Route], *, replica_role: bool, row_types: Mapping[TableName, RowType]) -> None:
        """``replica_role``: neither triggers nor foreign keys act on what the steps do."""
        self._row_types = row_types
        # By table, not by route: a table's shape can change in mid-stream. The cache holds the shapes in use.
        self._statements: dict[RoutedTable, TableStatements] = {}
        self._replica_role = replica_role
        self._cascaded = {
            route.name for route in routes if any(key.on_delete == "c" for key in route.target.foreign_keys)
        }

    def statements(self, table: RoutedTable) -> TableStatements:
        """What can be done to this table."""
        found = self._statements.get(table)
        if found is None:
            found = self._statements[table] = TableStatements(table.route, self._row_types.get(table.route.name))
        return found

    def deletes(self, table: RoutedTable, net: Net) -> list[Step]:
        """The deletes of a set."""
        if not net.deletes:
            return []
        statements = self.statements(table)
        return [Step(statements.delete, (statements.keys(net.deletes),), len(net.deletes), Op.DELETE, str(table))]

    def updates(self, table: RoutedTable, net: Net) -> list[Step]:
        """The updates of a set: a step per set of columns."""
        statements = self.statements(table)
        return [
            Step(statement, (statements.rows(rows),), len(rows), Op.UPDATE, str(table))
            for assigned, rows in net.updates.items()
            if (statement := statements.update(assigned)) is not None
        ]

    def inserts(self, table: RoutedTable, rows: Sequence[Row]) -> list[Step | Copy]:
        """The inserts of a set."""
        if not rows:
            return []
        statements = self.statements(table)
        if len(rows) >= COPY_FROM_ROWS:
            return [Copy(statements.copy, rows, str(table))]
        return [Step(statements.insert, (statements.rows(rows),), len(rows), Op.INSERT, str(table))]

    def in_order(self, event: RowEvent | Truncation, *, deletes: bool) -> list[Step]:
        """One change; ``deletes``: whether any of the changes around it deletes."""
        if isinstance(event, Truncation):
            return self._truncation(event)
        op, table, old_key, row = event
        statements = self.statements(table)
        if op is Op.INSERT:
            assert row is not None
            return [Step(statements.insert, (statements.rows([row]),), 1, op, str(table))]
        if op is Op.DELETE:
            assert old_key is not None
            # Where foreign keys are live, deleting a parent has already taken its children.
            expected = None if not self._replica_role and table.route.name in self._cascaded and deletes else 1
            if table.has_key:
                return [Step(statements.delete, (statements.keys([old_key]),), expected, op, str(table))]
            return [Step(statements.delete_whole, (statements.rows([old_key]),), expected, op, str(table))]
        assert row is not None
        return self._update(table, old_key, row)

    def _truncation(self, event: Truncation) -> list[Step]:
        tables = [self.statements(table) for table in event.tables]
        if not event.complete:
            return [Step(one.empty, (), None, Op.TRUNCATE, str(one.route)) for one in tables]
        statement = truncate(tables, restart_identity=event.restart_identity)
        name = ", ".join(map(str, event.tables))
        step = Step(statement, (), None, Op.TRUNCATE, name)
        if self._replica_role:
            return [step]
        # PostgreSQL truncates no table that a deferred check still waits for; earlier changes of this batch left some.
        return [
            Step(b"SET CONSTRAINTS ALL IMMEDIATE", (), None, Op.TRUNCATE, name),
            step,
            Step(b"SET CONSTRAINTS ALL DEFERRED", (), None, Op.TRUNCATE, name),
        ]

    def _update(self, table: RoutedTable, old_key: Row | None, row: Row) -> list[Step]:
        statements, name = self.statements(table), str(table)
        assigned = tuple(at for at, value in enumerate(row) if value is not UNCHANGED)
        rows = statements.rows([row])
        if statements.key and old_key is None:
            statement = statements.update(assigned)
            return [] if statement is None else [Step(statement, (rows,), 1, Op.UPDATE, name)]
        assert old_key is not None
        if statements.key:
            statement = statements.update_key(assigned)
            old, new = statements.keys([old_key]), statements.keys([table.key_of(row)])
        else:
            statement = statements.update_whole(assigned)
            old, new = statements.rows([old_key]), rows
        if self._replica_role or not table.route.target.foreign_keys:
            return [Step(statement, (rows, old), 1, Op.UPDATE, name)]
        # The target's own ON UPDATE CASCADE or ON DELETE SET NULL may have been here before us: then there is no old
        # row any more, but the new one, and that one there must be in either case.
        return [Step(statement, (rows, old), None, Op.UPDATE, name), Step(statement, (rows, new), 1, Op.UPDATE, name)]


def has_deletes(events: Sequence[Event]) -> bool:
    """Whether any of the changes deletes a row."""
    return any(type(event) is tuple and event[0] is Op.DELETE for event in events)
