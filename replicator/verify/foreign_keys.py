"""Foreign keys of the target, checked by anti-join: a session in replica mode writes without checking them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString, cast

from psycopg import sql

from replicator.model.schema import show_table
from replicator.postgres.connection import Connection, query, translated
from replicator.verify.report import ForeignKeyReport
from replicator.verify.snapshot import Follower

# Of and into the given tables. Constraints that allow orphans (NOT VALID, NOT ENFORCED) and temporal ones are left out.
_CONSTRAINTS = """
SELECT
    k.conname::text, n.nspname::text, c.relname::text, c.relkind::text,
    rn.nspname::text, r.relname::text, r.relkind::text,
    (SELECT pg_catalog.array_agg(a.attname::text ORDER BY p.position)
     FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS p (attnum, position)
     JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = p.attnum),
    (SELECT pg_catalog.array_agg(a.attname::text ORDER BY p.position)
     FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS p (attnum, position)
     JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = p.attnum),
    (SELECT pg_catalog.array_agg(pg_catalog.format('OPERATOR(%%I.%%s)', opn.nspname, o.oprname) ORDER BY p.position)
     FROM pg_catalog.unnest(k.conpfeqop) WITH ORDINALITY AS p (operator, position)
     JOIN pg_catalog.pg_operator o ON o.oid = p.operator
     JOIN pg_catalog.pg_namespace opn ON opn.oid = o.oprnamespace)
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class r ON r.oid = k.confrelid
JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0 AND k.convalidated
  AND coalesce(pg_catalog.to_jsonb(k) ->> 'conperiod', 'false') = 'false'
  AND (k.conrelid = ANY (%s::oid[]) OR k.confrelid = ANY (%s::oid[]))
ORDER BY 2, 3, 1
"""


_LOOKS: Final = 3
_ROWS: Final = 10_000  # more orphans than that are not on their way


@dataclass(frozen=True, slots=True)
class ForeignKeyCheck:
    """One foreign key, and how to find its orphans."""

    table: str
    name: str
    orphans: sql.Composed  # FROM … WHERE …, the referencing table as c

    def run(self, target: Connection) -> ForeignKeyReport:
        """Count the rows that reference a row that is not there."""
        with translated("target"):
            [(orphans,)] = query(target, sql.SQL("SELECT pg_catalog.count(*) {}").format(self.orphans))
        return ForeignKeyReport(self.table, self.name, orphans)

    def settle(self, found: ForeignKeyReport, target: Connection, follower: Follower) -> ForeignKeyReport:
        """Tell orphans from rows whose lane is ahead of that of the row that they reference.

        Three looks, and between them every lane comes to where the source is: a row that came too early is no orphan at
        the second any more, and one whose referenced row was deleted is gone, or another version, by the third.
        """
        if found.orphans > _ROWS:
            return found
        left = self._versions(target)
        for _ in range(_LOOKS - 1):
            if left:
                follower.wait_for_now()
                left &= self._versions(target)
        return ForeignKeyReport(found.table, found.name, len(left))

    def _versions(self, target: Connection) -> set[tuple[str, ...]]:
        """The versions of the rows that are orphans now: where they are, and who wrote them."""
        statement = sql.SQL("SELECT c.tableoid::text, c.ctid::text, c.xmin::text {}").format(self.orphans)
        with translated("target"):
            return set(query(target, statement))


def load_checks(target: Connection, table_oids: Collection[int]) -> list[ForeignKeyCheck]:
    """The checks of all foreign keys of these tables and into them."""
    oids = list(table_oids)
    with translated("target"):
        rows = query(target, _CONSTRAINTS, oids, oids)
    return [
        ForeignKeyCheck(show_table((schema, table)), name, _orphans(_from(schema, table, kind, "c"),
                        _from(ref_schema, ref_table, ref_kind, "p"), columns, ref_columns, operators))
        for name, schema, table, kind, ref_schema, ref_table, ref_kind, columns, ref_columns, operators in rows
    ]  # fmt: skip


def _orphans(
    child: sql.Composable,
    parent: sql.Composable,
    columns: Sequence[str],
    ref_columns: Sequence[str],
    operators: Sequence[str],
) -> sql.Composed:
    given = [sql.SQL("{} IS NOT NULL").format(sql.Identifier("c", name)) for name in columns]
    matches = [
        sql.SQL("{} {} {}").format(sql.Identifier("p", theirs), _operator(operator), sql.Identifier("c", ours))
        for ours, theirs, operator in zip(columns, ref_columns, operators, strict=True)
    ]
    return sql.SQL("FROM {} WHERE {} AND NOT EXISTS (SELECT FROM {} WHERE {})").format(
        child, sql.SQL(" AND ").join(given), parent, sql.SQL(" AND ").join(matches)
    )


def _operator(quoted: str) -> sql.Composable:
    return sql.SQL(cast(LiteralString, quoted))  # type: ignore[redundant-cast]


def _from(schema: str, table: str, kind: str, alias: str) -> sql.Composable:
    only = sql.SQL("ONLY ") if kind == "r" else sql.SQL("")
    return sql.SQL("{}{} AS {}").format(only, sql.Identifier(schema, table), sql.Identifier(alias))
