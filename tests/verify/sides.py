"""Two databases to plant differences in, and a verification of them."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from psycopg import sql

from replicator import config
from replicator.model.schema import parse_table_name
from replicator.postgres.connection import connect
from replicator.routes import require_routes
from replicator.routing.route import Route
from replicator.target import state
from replicator.target.idmaps import store_entries
from replicator.verify import Report, TableReport, verify
from tests.conftest import DatabasePair


class Sides:
    """Run SQL on either side or both; verify."""

    def __init__(self, pair: DatabasePair, **settings: Any) -> None:
        self.settings = config.Settings(
            source=config.Source(dsn=pair.source_dsn),
            target=config.Target(dsn=pair.target_dsn),
            **settings,
        )
        self.source = psycopg.connect(pair.source_dsn, autocommit=True)
        self.target = psycopg.connect(pair.target_dsn, autocommit=True)

    def close(self) -> None:
        self.source.close()
        self.target.close()

    def on_source(self, statement: LiteralString, *parameters: object) -> None:
        self.source.execute(statement, parameters or None)

    def on_target(self, statement: LiteralString, *parameters: object) -> None:
        self.target.execute(statement, parameters or None)

    def on_both(self, statement: LiteralString) -> None:
        self.on_source(statement)
        self.on_target(statement)

    def copy(self, table: str) -> None:
        """Copy a table's rows as the snapshot does: binary, column by column of the target."""
        names = [
            name
            for (name,) in self.target.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
                " ORDER BY attnum",
                [table],
            )
        ]
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        out = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT binary)").format(columns, sql.Identifier(table))
        into = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(sql.Identifier(table), columns)
        with self.source.cursor().copy(out) as rows, self.target.cursor().copy(into) as taking:
            for data in rows:
                taking.write(data)

    def copy_by_text(self, table: str) -> None:
        """Copy a table's rows as text: for types whose binary form holds OIDs of the server."""
        name = sql.Identifier(table)
        with (
            self.source.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(name)) as rows,
            self.target.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(name)) as taking,
        ):
            for data in rows:
                taking.write(data)

    def set_map(self, name: str, entries: dict[str, str]) -> None:
        with connect(self.settings.target.dsn, "target", purpose="test") as conn:
            state.migrate(conn)
            store_entries(conn, name, entries)

    def routes(self) -> list[Route]:
        with (
            connect(self.settings.source.dsn, "source", purpose="test") as source,
            connect(self.settings.target.dsn, "target", purpose="test") as target,
        ):
            return require_routes(self.settings, source, target)

    def verify(self, *tables: str, **options: Any) -> Report:
        names = {parse_table_name(name) for name in tables} or None
        return verify(self.settings, self.routes(), tables=names, **options)

    def table(self, **options: Any) -> TableReport:
        """The report of the only table."""
        [report] = self.verify(**options).tables
        return report


def counts(report: TableReport) -> tuple[int, int, int]:
    """(missing, extra, different)"""
    return report.missing, report.extra, report.different
