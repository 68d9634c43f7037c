"""The source's tables: may we read all their rows, and can each row be told from the others?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from replicator.config import Settings
from replicator.model.schema import Table, show_table
from replicator.postgres.connection import Connection, query
from replicator.preflight.check import Check, failed, or_passed, passed, warned
from replicator.routing.route import Route
from replicator.source import freeze


def check_readable(conn: Connection, routes: Sequence[Route]) -> list[Check]:
    """SELECT on every table, and no policy that would hide rows."""
    rows = query(
        conn,
        """
        SELECT c.oid::bigint,
               pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE')
                 AND pg_catalog.has_table_privilege(c.oid, 'SELECT'),
               pg_catalog.row_security_active(c.oid)
        FROM pg_catalog.pg_class c WHERE c.oid = ANY (%s::oid[])
        """,
        [route.source.oid for route in routes],
    )
    tables = {route.source.oid: route.source for route in routes}
    found = []
    for oid, readable, hidden in rows:
        table = tables[oid]
        if not readable:
            found.append(
                failed("select", "source", f"the role may not read {table}", f"GRANT SELECT ON {table}", table.name)
            )
        if hidden:
            found.append(
                failed(
                    "row_security",
                    "source",
                    f"row-level security hides rows of {table} from this role",
                    "use a role with BYPASSRLS, such as postgres",
                    table.name,
                )
            )
    return or_passed(found, "select", "source", f"all rows of {len(tables)} tables can be read")


def check_identity(conn: Connection, routes: Sequence[Route]) -> list[Check]:
    """Every table needs a key for its UPDATEs and DELETEs, or the source itself refuses them once published."""
    changed = dict(
        query(
            conn,
            "SELECT relid::bigint, (n_tup_upd + n_tup_del)::bigint FROM pg_catalog.pg_stat_all_tables"
            " WHERE relid = ANY (%s::oid[])",
            [route.source.oid for route in routes],
        )
    )
    found = [
        check for route in routes for check in _identity_of(route.source, changes=changed.get(route.source.oid, 0))
    ]
    return or_passed(found, "replica_identity", "source", f"all {len(routes)} tables have a key")


def _identity_of(table: Table, changes: int) -> Iterator[Check]:
    name = "replica_identity"
    if table.key:
        return
    if table.replica_identity == "f":
        yield warned(
            name,
            "source",
            f"{table} has no primary key: its changes are found by comparing whole rows, one by one",
            "add a primary key",
            table.name,
        )
        return
    why = "REPLICA IDENTITY NOTHING" if table.replica_identity == "n" else "neither a primary key nor an identity"
    remedy = f"add a primary key, or ALTER TABLE {table} REPLICA IDENTITY FULL"
    if changes:
        message = f"{table} has {why}: once it is published, the source refuses its UPDATEs and DELETEs"
        yield failed(name, "source", message, remedy, table.name)
    else:
        message = f"{table} has {why}: only INSERTs will work on the source once it is published"
        yield warned(name, "source", message, remedy, table.name)


def check_inheritance(conn: Connection, routes: Sequence[Route]) -> list[Check]:
    """Children of plain inheritance are tables of their own: a parent's copy leaves their rows out."""
    rows = query(
        conn,
        """
        SELECT DISTINCT n.nspname::text, p.relname::text FROM pg_catalog.pg_inherits i
        JOIN pg_catalog.pg_class p ON p.oid = i.inhparent AND p.relkind = 'r'
        JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace
        WHERE p.oid = ANY (%s::oid[])
        """,
        [route.source.oid for route in routes],
    )
    return [
        failed(
            "inheritance",
            "source",
            f"{show_table((schema, name))} has child tables by inheritance, whose rows are not its own",
            "replicate the children as tables of their own, or partition the table",
            (schema, name),
        )
        for schema, name in rows
    ]


def check_freeze(conn: Connection, routes: Sequence[Route]) -> list[Check]:
    """The cutover locks every table against writers and sets the database read-only."""
    found = []
    if locked_out := freeze.tables_not_lockable(conn, [route.source.name for route in routes]):
        found.append(
            warned(
                "freeze",
                "source",
                f"the role may not lock {', '.join(locked_out)}: the cutover cannot stop its writers",
                "use the tables' owner for the cutover, or GRANT UPDATE on them",
            )
        )
    if not freeze.may_store_read_only(conn):
        found.append(
            warned(
                "freeze",
                "source",
                "the role does not own the database: the cutover cannot set it read-only for applications",
                "use the database's owner for the cutover",
            )
        )
    [(may_signal,)] = query(
        conn,
        "SELECT rolsuper OR pg_catalog.pg_has_role('pg_signal_backend', 'USAGE') FROM pg_catalog.pg_roles"
        " WHERE rolname = current_user",
    )
    if not may_signal:
        found.append(
            warned(
                "freeze",
                "source",
                "the role may not end sessions of others: those that are open may write on after the hand-over",
                "GRANT pg_signal_backend TO the role, or stop the applications before the cutover",
            )
        )
    if roles := freeze.roles_of_their_own_mind(conn):
        found.append(
            warned(
                "freeze",
                "source",
                f"default_transaction_read_only is set for role {', '.join(roles)}, whose sessions may write on"
                " after the lock is released",
                "ALTER ROLE … RESET default_transaction_read_only, or stop what uses it before the cutover",
            )
        )
    return or_passed(found, "freeze", "source", "the cutover can stop every writer")


def check_user_table(conn: Connection, settings: Settings) -> Iterator[Check]:
    """``auth.users`` is where users come from when they are created or matched."""
    if not any(not spec.is_lookup for spec in settings.map_specs):
        return
    [(exists, readable)] = query(
        conn,
        """
        SELECT u.oid IS NOT NULL,
               CASE WHEN u.oid IS NULL THEN false  -- asked about a schema that is not there, the function fails
                    ELSE pg_catalog.has_schema_privilege('auth', 'USAGE')
                     AND pg_catalog.has_table_privilege(u.oid, 'SELECT') END
        FROM (SELECT pg_catalog.to_regclass('auth.users')::oid AS oid) AS u
        """,
    )
    if readable:
        yield passed("auth_users", "source", "auth.users can be read")
    elif exists:
        yield warned(
            "auth_users",
            "source",
            "auth.users cannot be read: users can be neither created nor matched, only imported",
            "GRANT USAGE ON SCHEMA auth and SELECT ON auth.users, or use the role postgres",
        )
    else:
        yield warned(
            "auth_users",
            "source",
            "there is no auth.users: users can be neither created nor matched, only imported",
            "load the map with `replicator users import`",
        )
