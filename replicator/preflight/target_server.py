"""The target as a server: may our role keep its state there and write?"""

from __future__ import annotations

from collections.abc import Iterator

from replicator.postgres.connection import Connection, query
from replicator.preflight.check import Check, failed, passed, warned


def check_writable(conn: Connection) -> Iterator[Check]:
    """A standby or a read-only session takes no rows."""
    [(standby, read_only)] = query(
        conn, "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only') = 'on'"
    )
    if standby:
        yield failed("writable", "target", "the server is a standby", "connect to the primary")
    elif read_only:
        yield failed("writable", "target", "sessions are read-only", "set default_transaction_read_only = off")
    else:
        yield passed("writable", "target", "the server takes writes")


def check_state_schema(conn: Connection) -> Iterator[Check]:
    """Our state lives in schema ``replicator``: it must be there and ours, or we must be able to create it."""
    [(role, may_create, exists, ours)] = query(
        conn,
        """
        SELECT current_user::text,
               pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
               n.oid IS NOT NULL,
               coalesce(pg_catalog.pg_has_role(n.nspowner, 'USAGE'), false)
        FROM (SELECT) AS one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'replicator'
        """,
    )
    name = "state_schema"
    if exists and not ours:
        yield failed(
            name,
            "target",
            f"schema replicator belongs to another role than {role}",
            f"ALTER SCHEMA replicator OWNER TO {role}, or use its owner",
        )
    elif exists:
        yield passed(name, "target", "schema replicator exists")
    elif may_create:
        yield passed(name, "target", "schema replicator can be created")
    else:
        yield failed(
            name,
            "target",
            f"role {role} may not create schema replicator",
            f"GRANT CREATE ON DATABASE … TO {role}, or CREATE SCHEMA replicator AUTHORIZATION {role}",
        )


def check_trigger_role(silenced: bool) -> Iterator[Check]:
    """With ``session_replication_role = replica`` triggers and foreign keys do not run a second time."""
    if silenced:
        yield passed(
            "session_replication_role", "target", "triggers and foreign keys can be silenced while rows arrive"
        )
    else:
        yield warned(
            "session_replication_role",
            "target",
            "the role may not set it: triggers fire and foreign keys are checked while rows arrive",
            "GRANT SET ON PARAMETER session_replication_role TO the role (server 15+), or use a superuser",
        )


def check_encoding(source: Connection, target: Connection) -> Iterator[Check]:
    """Text travels as UTF8; what the target's encoding does not hold is refused there."""
    statement = """
        SELECT pg_catalog.pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text
        FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()
        """
    [(theirs, collate, ctype)] = query(source, statement)
    [(ours, target_collate, target_ctype)] = query(target, statement)
    if "SQL_ASCII" in (theirs, ours):
        side = "source" if theirs == "SQL_ASCII" else "target"
        yield failed(
            "encoding",
            "both",
            f"the {side} has no encoding (SQL_ASCII): its bytes have no certain meaning",
            "move to a database with ENCODING 'UTF8'",
        )
    elif ours != "UTF8":
        yield warned(
            "encoding",
            "both",
            f"{theirs} → {ours}: a character that {ours} does not have stops the stream",
            "create the target database with ENCODING 'UTF8'",
        )
    else:
        yield passed("encoding", "both", f"{theirs} → {ours}")
    if (collate, ctype) == (target_collate, target_ctype):
        yield passed("collation", "both", f"{collate}" if collate == ctype else f"{collate}, {ctype}")
    else:
        yield warned(
            "collation",
            "both",
            f"text sorts by {collate} on the source and by {target_collate} on the target"
            + ("" if ctype == target_ctype else f"; letters are classified by {ctype} and {target_ctype}"),
            "create the target database with the same LC_COLLATE and LC_CTYPE if the order of texts matters",
        )
