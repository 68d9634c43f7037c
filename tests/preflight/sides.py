"""Two databases to look at, and what the preflight says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from replicator.config import Settings
from replicator.preflight import Check, run_checks
from tests.snapshot.case import slot_name


@dataclass
class Sides:
    source_dsn: str
    target_dsn: str

    def source(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return execute(self.source_dsn, statement, *parameters)

    def target(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return execute(self.target_dsn, statement, *parameters)

    def both(self, statement: str) -> None:
        self.source(statement)
        self.target(statement)

    @property
    def slot(self) -> str:
        return slot_name(self.source_dsn)

    def settings(self, *, source_dsn: str = "", target_dsn: str = "", **sections: Any) -> Settings:
        sections.setdefault("source", {}).update(dsn=source_dsn or self.source_dsn, slot=self.slot)
        return Settings(target={"dsn": target_dsn or self.target_dsn}, **sections)

    def check(self, **options: Any) -> Findings:
        return Findings(run_checks(self.settings(**options)))


class Findings:
    """All checks of one run."""

    def __init__(self, checks: list[Check]) -> None:
        self.all = checks

    def named(self, name: str) -> list[Check]:
        return [check for check in self.all if check.name == name]

    def status(self, name: str) -> set[str]:
        return {check.status.value for check in self.named(name)}

    def bad(self) -> set[tuple[str, str]]:
        """(name, status) of all that did not pass."""
        return {(check.name, check.status.value) for check in self.all if check.status.value != "pass"}

    def text(self, name: str) -> str:
        return "\n".join(f"{check.message} — {check.remedy}" for check in self.named(name))


def execute(dsn: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []
