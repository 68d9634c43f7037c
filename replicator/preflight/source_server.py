"""The source as a server: can it publish, and will it keep its WAL for us?"""

from __future__ import annotations

from collections.abc import Iterator

from replicator.config import Settings
from replicator.postgres.connection import Connection, query
from replicator.preflight.check import Check, failed, passed, warned

_SAFE_KEEP_BYTES = 4 << 30
_SAFE_STOP_S = 8 * 3600  # a night
_SHORT_TIMEOUT_MS = 5_000
_LONG_TRANSACTION_S = 300


def check_wal_level(conn: Connection) -> Iterator[Check]:
    """Logical decoding needs ``wal_level = logical`` and a server that is not a standby."""
    level = setting(conn, "wal_level")
    if level == "logical":
        yield passed("wal_level", "source", "logical")
    else:
        yield failed("wal_level", "source", f"wal_level is {level}", "set wal_level = logical and restart the server")
    [(standby,)] = query(conn, "SELECT pg_catalog.pg_is_in_recovery()")
    if standby:
        yield failed(
            "primary",
            "source",
            "the server is a standby: it takes neither a publication nor logical messages",
            "connect to the primary",
        )


def check_capacity(conn: Connection, settings: Settings) -> Iterator[Check]:
    """A replication slot and a WAL sender for every lane must be free, unless they are ours already."""
    wanted = [lane.source.slot for lane in settings.split()]
    [(slots, ours, active, senders)] = query(
        conn,
        """
        SELECT (SELECT count(*) FROM pg_catalog.pg_replication_slots),
               (SELECT count(*) FROM pg_catalog.pg_replication_slots WHERE slot_name = ANY (%s)),
               (SELECT count(*) FROM pg_catalog.pg_replication_slots WHERE slot_name = ANY (%s) AND active),
               (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'walsender')
        """,
        wanted,
        wanted,
    )
    for name, parameter, used, held in (
        ("replication_slots", "max_replication_slots", slots, ours),
        ("wal_senders", "max_wal_senders", senders, active),
    ):
        yield _capacity(name, parameter, int(setting(conn, parameter)), used, held, len(wanted))


def _capacity(name: str, parameter: str, limit: int, used: int, ours: int, wanted: int) -> Check:
    if used - ours + wanted <= limit:
        own = f", {'one' if ours == 1 else ours} of them ours" if ours else ""
        return passed(name, "source", f"{used} of {limit} in use{own}")
    found = (
        f"all {limit} are in use" if wanted == 1 else f"{used} of {limit} are in use, and {wanted} lanes need one each"
    )
    return failed(name, "source", found, f"drop one that nobody needs, or raise {parameter} (needs a restart)")


def check_role(conn: Connection) -> Iterator[Check]:
    """Reading the stream needs REPLICATION; reading all rows needs BYPASSRLS where policies are in force."""
    [(name, superuser, replication, bypass)] = query(
        conn,
        "SELECT rolname::text, rolsuper, rolreplication, rolbypassrls FROM pg_catalog.pg_roles"
        " WHERE rolname = current_user",
    )
    if superuser or replication:
        yield passed("role_replication", "source", f"role {name} may replicate")
    else:
        yield failed(
            "role_replication",
            "source",
            f"role {name} has no REPLICATION",
            f"ALTER ROLE {name} REPLICATION, or use the role postgres",
        )
    if superuser or bypass:
        yield passed("role_bypassrls", "source", f"role {name} reads past row-level security")
    else:
        yield warned(
            "role_bypassrls",
            "source",
            f"role {name} has no BYPASSRLS: a policy enabled later stops the copy with an error",
            f"ALTER ROLE {name} BYPASSRLS, or use the role postgres",
        )


def check_timeouts(conn: Connection) -> Iterator[Check]:
    """Timeouts that a session may set are set by us; the others must leave us time."""
    sender_ms = int(setting(conn, "wal_sender_timeout"))
    if 0 < sender_ms < _SHORT_TIMEOUT_MS:
        yield warned(
            "wal_sender_timeout",
            "source",
            f"{sender_ms} ms: a short hiccup of the network ends the stream (it reconnects)",
            "raise wal_sender_timeout to 60s",
        )
    else:
        yield passed("wal_sender_timeout", "source", f"{sender_ms / 1000:g} s" if sender_ms else "off")
    idle = setting(conn, "idle_replication_slot_timeout")
    if idle and idle != "0":
        yield warned(
            "idle_replication_slot_timeout",
            "source",
            f"a slot that nobody reads for {idle} s is lost: during the snapshot, or while the service is stopped",
            "set idle_replication_slot_timeout = 0 until the cutover",
        )
    elif idle:
        yield passed("idle_replication_slot_timeout", "source", "off")
    [(statement_ms,)] = query(
        conn, "SELECT reset_val::bigint FROM pg_catalog.pg_settings WHERE name = 'statement_timeout'"
    )
    default = f"{statement_ms / 1000:g} s by default, " if statement_ms else ""
    yield passed("statement_timeout", "source", f"{default}off in our sessions")


def check_failover(conn: Connection, settings: Settings) -> Iterator[Check]:
    """Should the source fail over to a standby: will the slot be there, and the target not ahead?"""
    name = "failover"
    [(standbys,)] = query(
        conn, "SELECT count(*) FROM pg_catalog.pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary"
    )
    if not standbys:
        yield passed(name, "source", "no standby has a slot here")
    elif conn.info.server_version < 170000 or not settings.source.failover:
        why = "servers before 17 keep no slot on standbys" if settings.source.failover else "source.failover is off"
        yield warned(name, "source", f"{why}: a failover loses the slot", "avoid one until the cutover, or start over")
    elif not setting(conn, "synchronized_standby_slots"):
        yield warned(
            name,
            "source",
            "synchronized_standby_slots is empty: after a failover the target may be ahead of its source, which is then"
            " refused",
            "name the standby's slot there, and set sync_replication_slots and hot_standby_feedback on the standby",
        )
    else:
        yield passed(name, "source", f"the stream waits for {setting(conn, 'synchronized_standby_slots')}")


def check_wal_kept(conn: Connection, estimated_bytes: int) -> Iterator[Check]:
    """``max_slot_wal_keep_size``: more WAL than that during a snapshot or a stop of the service loses the slot."""
    megabytes = int(setting(conn, "max_slot_wal_keep_size") or -1)
    name = "max_slot_wal_keep_size"
    if megabytes < 0:
        yield passed(name, "source", "unlimited: watch the source's disk while the service is stopped")
        return
    # An average over days and nights, where the statistics reach that far: a look of our own would see a moment.
    [(rate,)] = query(
        conn,
        """
        SELECT CASE WHEN stats_reset < clock_timestamp() - interval '1 hour'
                    THEN (wal_bytes / extract(epoch FROM clock_timestamp() - stats_reset))::float8 END
        FROM pg_catalog.pg_stat_wal
        """,
    )
    average = rate or 0.0
    lasts = (
        f", {(megabytes << 20) / average / 3600:.1f} h at the average of {average / 1024:.0f} kB/s" if average else ""
    )
    wanted = max(_SAFE_KEEP_BYTES, estimated_bytes, int(average * _SAFE_STOP_S))
    if megabytes << 20 >= wanted:
        yield passed(name, "source", f"{megabytes} MB{lasts}")
    else:
        yield warned(
            name,
            "source",
            f"{megabytes} MB{lasts}: when the source writes more than that during the snapshot or a stop of the"
            " service, the slot is lost",
            f"raise max_slot_wal_keep_size to {-(-wanted >> 30)}GB or more for the migration",
        )


def check_transactions(conn: Connection) -> Iterator[Check]:
    """Creating the slot waits for every transaction that is writing, prepared ones included."""
    [(prepared,)] = query(conn, "SELECT count(*) FROM pg_catalog.pg_prepared_xacts")
    if prepared:
        yield warned(
            "prepared_transactions",
            "source",
            f"{prepared} prepared transactions: creating the slot waits until they end",
            "COMMIT PREPARED or ROLLBACK PREPARED what pg_prepared_xacts lists",
        )
    else:
        yield passed("prepared_transactions", "source", "none")
    rows = query(
        conn,
        """
        SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::bigint FROM pg_catalog.pg_stat_activity
        WHERE backend_xid IS NOT NULL AND backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()
          AND xact_start < clock_timestamp() - make_interval(secs => %s)
        ORDER BY xact_start
        """,
        _LONG_TRANSACTION_S,
    )
    if rows:
        pids = ", ".join(str(pid) for pid, _ in rows[:5])
        yield warned(
            "long_transactions",
            "source",
            f"{len(rows)} writing transactions are open for up to {rows[0][1] // 60} min (pid {pids}):"
            " creating the slot waits until they end",
            "end them, or start when they are done",
        )
    else:
        yield passed("long_transactions", "source", "none older than 5 min")


def check_large_objects(conn: Connection) -> Iterator[Check]:
    """Large objects are not part of logical replication."""
    [(some,)] = query(conn, "SELECT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)")
    if some:
        yield warned(
            "large_objects",
            "source",
            "the database holds large objects, which logical replication leaves out",
            "move them with pg_dump --large-objects",
        )


def setting(conn: Connection, name: str) -> str:
    """A configuration parameter in its base unit; empty if this server does not have it."""
    rows = query(conn, "SELECT setting FROM pg_catalog.pg_settings WHERE name = %s", name)
    return str(rows[0][0]) if rows else ""
