"""Our publication on the source: an explicit list of tables, all four operations, partitions under their root."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from psycopg import errors, sql

from replicator.errors import NEW_SNAPSHOT, SlotLost, StateError
from replicator.model.schema import Table, TableName, show_tables
from replicator.postgres.connection import Connection, query, table_identifier, translated
from replicator.postgres.diagnosis import describe
from replicator.routing.route import Route


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication as the catalog describes it. The OIDs tell it from one of the same name made later."""

    oid: int
    is_ours: bool  # the session's role may alter it
    all_tables: bool
    schemas: tuple[str, ...]  # FOR TABLES IN SCHEMA, server 15+
    operations: frozenset[str]
    via_root: bool
    tables: dict[TableName, int]  # → pg_publication_rel.oid
    narrowed: frozenset[TableName]  # those with a row filter or a column list, server 15+


_OPERATIONS = frozenset({"insert", "update", "delete", "truncate"})


def load_publication(conn: Connection, name: str) -> Publication | None:
    """The publication of this name, None if there is none."""
    rows = query(
        conn,
        """
        SELECT oid::bigint, pg_catalog.pg_has_role(pubowner, 'USAGE'), puballtables,
               pg_catalog.array_remove(ARRAY[
                   CASE WHEN pubinsert THEN 'insert' END, CASE WHEN pubupdate THEN 'update' END,
                   CASE WHEN pubdelete THEN 'delete' END, CASE WHEN pubtruncate THEN 'truncate' END], NULL),
               pubviaroot
        FROM pg_catalog.pg_publication WHERE pubname = %s
        """,
        name,
    )
    for oid, is_ours, all_tables, operations, via_root in rows:
        # The columns of 15+ by way of JSON, so that one statement does for 14 as well.
        members = query(
            conn,
            """
            SELECT n.nspname::text, c.relname::text, r.oid::bigint,
                   coalesce(pg_catalog.to_jsonb(r) ->> 'prqual', pg_catalog.to_jsonb(r) ->> 'prattrs') IS NOT NULL
            FROM pg_catalog.pg_publication_rel r
            JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE r.prpubid = %s
            """,
            oid,
        )
        return Publication(
            oid=oid,
            is_ours=is_ours,
            all_tables=all_tables,
            schemas=_schemas(conn, oid),
            operations=frozenset(operations),
            via_root=via_root,
            tables={(schema, table): member for schema, table, member, _ in members},
            narrowed=frozenset((schema, table) for schema, table, _, is_narrowed in members if is_narrowed),
        )
    return None


def _schemas(conn: Connection, oid: int) -> tuple[str, ...]:
    if conn.info.server_version < 150000:
        return ()
    rows = query(
        conn, "SELECT pnnspid::regnamespace::text FROM pg_catalog.pg_publication_namespace WHERE pnpubid = %s", oid
    )
    return tuple(sorted(schema for (schema,) in rows))


def ensure_publication(conn: Connection, name: str, routes: Iterable[Route]) -> None:
    """Create the publication for the routes' source tables, or add those that it lacks.

    Only before a snapshot of these tables: what was written while a table was not in it is in no stream.

    Raises:
        StateError: a publication of this name exists and publishes something else.
    """
    tables = [route.source for route in routes]
    with translated("source"):
        found = load_publication(conn, name)
        if found is None:
            _create(conn, name, tables)
            return
        _refuse_other(name, found, {table.name for table in tables})
        missing = [table for table in tables if table.name not in found.tables]
        if missing and not found.is_ours:
            raise StateError(
                f"publication {name} lacks {show_tables(table.name for table in missing)} and belongs to another role",
                hint="let its owner add them with ALTER PUBLICATION … ADD TABLE, or choose another name",
            )
        if missing:
            conn.execute(
                sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(sql.Identifier(name), _table_list(missing))
            )


def require_publication(
    conn: Connection,
    name: str,
    routes: Iterable[Route],
    *,
    may_lack: Collection[TableName] = (),
    published: Mapping[TableName, int | None] | None = None,
) -> Publication:
    """The publication as the stream needs it.

    Args:
        may_lack: source tables that are about to be copied and that `ensure_publication` will add.
        published: by target table, the OID of its entry in the publication when its snapshot was taken.

    Raises:
        SlotLost: it is gone, or was: what was written meanwhile can no longer be had from the slot.
        StateError: it publishes less than the routes need, or did for a while; or it publishes something else.
    """
    with translated("source"):
        found = load_publication(conn, name)
    if found is None:
        # Making it again does not help. Decoding sees the catalog as it was: up to server 17 it fails at the first
        # change from the time without publication, from 18 on it skips such changes without a word.
        raise SlotLost(
            f"publication {name} is gone from the source: changes made without it are lost to the stream",
            hint=f"{NEW_SNAPSHOT}; creating the publication again is not enough",
        )
    wanted = {route.source.name: route for route in routes}
    _refuse_other(name, found, wanted.keys())
    _refuse_gaps(name, found, wanted.values(), may_lack, published or {})
    return found


def _refuse_gaps(
    name: str,
    found: Publication,
    routes: Collection[Route],
    may_lack: Collection[TableName],
    published: Mapping[TableName, int | None],
) -> None:
    """Tables that are not in the publication, or were not for a while: their entry is another one now."""
    absent = [route for route in routes if route.source.name not in found.tables]
    returned = [
        route
        for route in routes
        if route not in absent and published.get(route.name) not in (None, found.tables[route.source.name])
    ]
    gaps = [route for route in (*absent, *returned) if route.source.name not in may_lack]
    if not gaps:
        return
    if len(returned) == len(routes):
        raise SlotLost(
            f"publication {name} was dropped and created again: changes made without it are lost to the stream",
            hint=NEW_SNAPSHOT,
        )
    again = " ".join(f"--table {route}" for route in gaps)
    raise StateError(
        f"publication {name} {'did not publish for a while' if gaps[0] in returned else 'does not publish'} "
        f"{show_tables(route.source.name for route in gaps)}: changes made meanwhile are lost to the stream",
        hint=f"`replicator snapshot {again}` adds what is missing and copies it again",
    )


def drop_publication(conn: Connection, name: str) -> None:
    """Drop the publication if it exists."""
    with translated("source"):
        conn.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))


def create_statement(name: str, tables: Iterable[Table]) -> sql.Composed:
    """The statement that creates our publication for these source tables, at least one."""
    return sql.SQL(
        "CREATE PUBLICATION {} FOR TABLE {}"
        " WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)"
    ).format(sql.Identifier(name), _table_list(tables))


def _create(conn: Connection, name: str, tables: Collection[Table]) -> None:
    try:
        conn.execute(create_statement(name, tables))
    except errors.InsufficientPrivilege as exc:
        raise StateError(
            f"the source's role may not create publication {name}: {describe(exc)}",
            hint="it needs CREATE on the database and must own the tables; or let their owner create the publication",
        ) from exc


def _table_list(tables: Iterable[Table]) -> sql.Composed:
    # ONLY: children by inheritance are tables of their own. A partitioned table stands for its partitions.
    return sql.SQL(", ").join(
        sql.SQL("{}" if table.kind == "p" else "ONLY {}").format(table_identifier(table.name)) for table in tables
    )


def _refuse_other(name: str, found: Publication, wanted: Collection[TableName]) -> None:
    extra = sorted(found.tables.keys() - set(wanted))
    narrowed = sorted(found.narrowed & set(wanted))
    fault = ""
    remedy = (
        "choose another name in [source] publication; or, if nothing else uses it, drop it before the first snapshot "
        "and let the replicator create it"
    )
    if found.all_tables:
        fault = "publishes all tables"
    elif found.schemas:
        fault = f"publishes whole schemas ({', '.join(found.schemas)})"
    elif extra:
        fault = f"publishes tables that are not in the plan: {show_tables(extra)}"
        remedy = (
            f"name them in `tables` of the settings; or, if nothing else uses it, ALTER PUBLICATION {name} DROP TABLE …"
        )
    elif narrowed:
        fault = f"has a row filter or a column list for {show_tables(narrowed)}"
    elif found.operations != _OPERATIONS:
        fault = f"does not publish {', '.join(sorted(_OPERATIONS - found.operations))}"
    elif not found.via_root:
        fault = "publishes partitions under their own names (publish_via_partition_root is off)"
    if fault:
        raise StateError(f"publication {name} {fault}", hint=remedy)
