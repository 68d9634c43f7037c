"""The target's tables: may we write them, and will nothing there act on its own?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg import sql

from replicator.config import Settings
from replicator.model.schema import TableName, show_table, show_tables
from replicator.postgres.connection import Connection, query, table_identifier
from replicator.preflight.check import Check, failed, or_passed, passed, warned
from replicator.preflight.schemas import key_columns
from replicator.routing.lanes import FIRST, crossing_keys
from replicator.routing.route import Route
from replicator.target import indexes, state

_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")


def check_privileges(conn: Connection, routes: Sequence[Route], *, defer_indexes: bool) -> list[Check]:
    """All that applying needs on every table, and no row-level security in the way."""
    rows = query(
        conn,
        """
        SELECT c.oid::bigint,
               ARRAY(SELECT p FROM unnest(%s::text[]) AS p WHERE NOT pg_catalog.has_table_privilege(c.oid, p)),
               pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'),
               pg_catalog.row_security_active(c.oid),
               pg_catalog.pg_has_role(c.relowner, 'USAGE')
        FROM pg_catalog.pg_class c WHERE c.oid = ANY (%s::oid[])
        """,
        list(_PRIVILEGES),
        [route.target.oid for route in routes],
    )
    names = {route.target.oid: route.name for route in routes}
    found = []
    foreign = []
    for oid, missing, usable, guarded, owned in rows:
        name = names[oid]
        if not usable:
            missing = ["USAGE on its schema", *missing]
        if missing:
            what = ", ".join(missing)
            found.append(
                failed("privileges", "target", f"the role lacks {what} on {show_table(name)}", "GRANT them", name)
            )
        if guarded:
            message = f"row-level security of {show_table(name)} applies to this role: it would refuse or hide rows"
            found.append(
                failed("row_security", "target", message, "use the table's owner or a role with BYPASSRLS", name)
            )
        if not owned:
            foreign.append(show_table(name))
    if foreign and defer_indexes:
        found.append(
            warned(
                "ownership",
                "target",
                f"the role does not own {_some(foreign)}: their indexes cannot be dropped and rebuilt around the copy",
                "use the owner for a faster copy, or set snapshot.defer_indexes = false",
            )
        )
    return or_passed(found, "privileges", "target", f"{len(routes)} tables can be written")


def check_triggers(conn: Connection, routes: Sequence[Route], *, silenced: bool) -> list[Check]:
    """Triggers that would fire for rows that arrive: ALWAYS and REPLICA ones, or all where we may not silence them."""
    rows = query(
        conn,
        """
        SELECT n.nspname::text, c.relname::text, pg_catalog.array_agg(t.tgname::text ORDER BY t.tgname)
        FROM pg_catalog.pg_trigger t
        JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = ANY (%s::oid[]) AND NOT t.tgisinternal AND t.tgenabled = ANY (%s::"char"[])
        GROUP BY 1, 2 ORDER BY 1, 2
        """,
        [route.target.oid for route in routes],
        ["A", "R"] if silenced else ["A", "O"],
    )
    found = [
        warned(
            "triggers",
            "target",
            f"{show_table((schema, table))}: {_some(names)} fires for rows that arrive",
            "ALTER TABLE … DISABLE TRIGGER until the cutover, unless it is meant to",
            (schema, table),
        )
        for schema, table, names in rows
    ]
    return or_passed(found, "triggers", "target", "none fires for rows that arrive")


def check_key_indexes(conn: Connection, routes: Sequence[Route]) -> list[Check]:
    """UPDATEs and DELETEs find their rows by the source's key: without an index each one scans the table."""
    leading = query(
        conn,
        """
        SELECT i.indrelid::bigint, a.attname::text FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = ANY (%s::oid[]) AND i.indisvalid AND i.indpred IS NULL
        """,
        [route.target.oid for route in routes],
    )
    indexed = {(oid, column) for oid, column in leading}
    # A snapshot that is under way, or was interrupted, brings its indexes back.
    away = {index.table for index in indexes.pending(conn)} if state.exists(conn) else set()
    found = []
    for route in routes:
        key = key_columns(route)
        if key and route.name not in away and not any((route.target.oid, column) in indexed for column in key):
            columns = ", ".join(key)
            found.append(
                warned(
                    "key_index",
                    "target",
                    f"{route} has no index that starts with a column of the source's key ({columns}):"
                    " every UPDATE and DELETE scans it",
                    f"CREATE INDEX ON {route} ({columns})",
                    route.name,
                )
            )
    return or_passed(found, "key_index", "target", "every key has an index")


def check_foreign_keys(routes: Sequence[Route]) -> list[Check]:
    """A referenced table outside the plan must hold the rows that ours point to."""
    planned = {route.name for route in routes}
    found = [
        warned(
            "foreign_keys",
            "target",
            f"{route} references {show_table(key.references)}, which is not replicated ({key.name})",
            "add it to `tables`, or fill it by other means",
            route.name,
        )
        for route in routes
        for key in route.target.foreign_keys
        if key.references not in planned
    ]
    return or_passed(found, "foreign_keys", "target", "every referenced table is replicated")


def check_lanes(settings: Settings, routes: Sequence[Route], *, replica: bool) -> Iterator[Check]:
    """Live foreign keys must not lead from one lane to another. ``replica``: none is live."""
    for number in settings.lane_numbers:
        names = show_tables(sorted(route.name for route in routes if settings.lane_of.get(route.name, FIRST) == number))
        yield passed("lanes", "target", f"lane {number}: {names}")
    crossing = crossing_keys(settings.lane_of, routes, {route.name for route in routes})
    for fault in () if replica else crossing:
        yield failed("lanes", "target", f"{show_table(fault.table)}: {fault.message}", fault.remedy, fault.table)


def check_empty(conn: Connection, routes: Sequence[Route], known: set[TableName]) -> list[Check]:
    """The snapshot refuses tables that hold rows which it did not copy. ``known``: tables with a recorded state."""
    found = []
    for route in routes:
        if route.name in known:
            continue
        statement = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table_identifier(route.name))
        [(filled,)] = query(conn, statement)
        if filled:
            found.append(
                warned(
                    "empty_tables",
                    "target",
                    f"{route} holds rows already: the snapshot refuses it",
                    "empty it, or give --truncate",
                    route.name,
                )
            )
    return or_passed(found, "empty_tables", "target", "no table holds rows of somebody else's")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
