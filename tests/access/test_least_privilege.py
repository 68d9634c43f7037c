"""The roles of the README and nothing more: its SQL is taken from there, and the whole move is made with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from replicator.demo.servers import Server
from tests.refusals.site import ROWS, SCHEMA, Site

README = Path(__file__).parents[2] / "README.md"
MORE = """
    CREATE TABLE numbered (id serial PRIMARY KEY, label text);
    CREATE INDEX notes_body ON notes (body);
    CREATE TABLE private (id int PRIMARY KEY, owner text);
    ALTER TABLE private ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON private USING (owner = current_user);
"""
USERS = "CREATE SCHEMA auth; CREATE TABLE auth.users (id uuid PRIMARY KEY, email text)"


def statements(side: str) -> str:
    """The SQL block of the README's section “Roles” for one side."""
    section = README.read_text("utf-8").split("### Roles", 1)[1].split("\n### ", 1)[0]
    [block] = re.findall(rf"```sql\n-- {side}\b(.*?)```", section, re.DOTALL)
    return "--" + str(block)


def prepare(server: Server, side: str, role_sql: str) -> str:
    """Database ``app`` of ``app_owner`` with its tables, and our role; the DSN of that role."""
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute("CREATE ROLE app_owner")
        conn.execute("CREATE DATABASE app OWNER app_owner")
    with psycopg.connect(server.dsn("app"), autocommit=True) as conn:
        if side == "source":
            conn.execute(USERS)
        conn.execute("ALTER SCHEMA public OWNER TO app_owner; SET ROLE app_owner")
        conn.execute(SCHEMA + MORE)
        conn.execute("RESET ROLE")
        if side == "source":
            conn.execute("ALTER TABLE private FORCE ROW LEVEL SECURITY")
            conn.execute(ROWS + "; INSERT INTO private VALUES (1, 'nobody'); INSERT INTO numbered (label) VALUES ('a')")
        conn.execute(role_sql.replace("'…'", f"'{server.password}'"))
    return server.dsn("app", "replicator")


@pytest.fixture
def servers_of_its_own(start_server: Callable[..., Server]) -> Iterator[tuple[Server, Server]]:
    """Roles belong to the whole server, and the README names them."""
    yield start_server(16), start_server(18)


class Move:
    """A site whose service has only the README's roles; the test itself looks as a superuser."""

    def __init__(self, directory: Path, servers: tuple[Server, Server], dsns: tuple[str, str]) -> None:
        self.servers = servers
        self.site = Site(directory, *dsns, "replicator")
        self.site.tables += ["numbered", "private"]

    def sql(self, side: str, statement: str) -> list[tuple[object, ...]]:
        server = self.servers[side == "target"]
        with psycopg.connect(
            server.dsn("app"), autocommit=True, options="-c default_transaction_read_only=off"
        ) as conn:
            cursor = conn.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def write(self) -> None:
        self.sql(
            "source",
            "SET ROLE app_owner; INSERT INTO customers SELECT i, 'new' FROM generate_series(3000, 3009) i;"
            "INSERT INTO orders SELECT i, i FROM generate_series(3000, 3009) i; DELETE FROM notes WHERE id = 3;"
            "INSERT INTO numbered (label) VALUES ('b'); UPDATE notes SET body = 'changed' WHERE id = 4",
        )

    def all_the_way(self, *, ordinary: str) -> None:
        """Every command of the runbook; ``ordinary``: a role that must see nothing of ours."""
        site = self.site
        site.done("check")
        site.done("plan")
        site.done("snapshot")
        with site.service() as service:
            self.write()
            self.wait_until_caught_up()
            site.done("status")
            site.done("verify")
            site.done("users", "status")
            self.assert_closed(ordinary)
            site.done("cutover", "--yes")
            service.ends(0)
        for table in site.tables:
            content = f"SELECT * FROM {table} ORDER BY id"
            assert self.sql("source", content) == self.sql("target", content), table
        assert self.sql("target", "SELECT last_value FROM numbered_id_seq") == [(2,)]
        site.close()
        site.done("teardown", "--yes")
        assert self.sql("source", "SELECT FROM pg_replication_slots") == []
        assert self.sql("source", "SELECT FROM pg_publication WHERE pubname = 'replicator'") in ([], [()])
        assert self.sql("target", "SELECT FROM pg_namespace WHERE nspname = 'replicator'") == []

    def wait_until_caught_up(self) -> None:
        [(lsn,)] = self.sql("source", "SELECT pg_logical_emit_message(true, 'test', '')::text")
        reached = f"SELECT applied_lsn >= '{lsn}'::pg_lsn FROM replicator.checkpoint"
        self.site.wait(lambda: self.sql("target", reached) == [(True,)], "not caught up")
        self.site.wait(lambda: self.site.command("status").code == 0, "not healthy")

    def assert_closed(self, role: str) -> None:
        """Neither the state nor anything in it is open to a role that has nothing to do with us."""
        self.sql("target", f"CREATE ROLE {role}")
        found = self.sql(
            "target",
            f"SELECT has_schema_privilege('{role}', 'replicator', 'USAGE, CREATE'),"
            f" bool_or(has_table_privilege('{role}', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')),"
            f" count(*) > 5 FROM pg_class c WHERE relnamespace = 'replicator'::regnamespace AND relkind IN ('r', 'S')",
        )
        assert found == [(False, False, True)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            self.sql("target", f"SET ROLE {role}; SELECT FROM replicator.id_map")


def test_the_roles_of_the_readme_make_the_whole_move(servers_of_its_own: tuple[Server, Server], tmp_path: Path) -> None:
    source, target = servers_of_its_own
    dsns = prepare(source, "source", statements("source")), prepare(target, "target", statements("target"))
    move = Move(tmp_path, servers_of_its_own, dsns)
    for side in ("source", "target"):
        assert move.sql(side, "SELECT rolsuper FROM pg_roles WHERE rolname = 'replicator'") == [(False,)]
    checks = json.loads(move.site.done("check", "--json").out)["checks"]
    about_rights = ("role_replication", "role_bypassrls", "publication", "select", "freeze", "privileges", "ownership",
                    "session_replication_role", "state_schema")  # fmt: skip
    assert not [check for check in checks if check["name"] in about_rights and check["status"] != "pass"]
    move.all_the_way(ordinary="passer_by")


LESS_ON_SOURCE = """
    CREATE ROLE replicator LOGIN REPLICATION BYPASSRLS PASSWORD '…';
    GRANT USAGE ON SCHEMA public TO replicator;
    GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO replicator;
    GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO replicator;
    GRANT USAGE ON SCHEMA auth TO replicator; GRANT SELECT ON auth.users TO replicator;
"""
LESS_ON_TARGET = """
    CREATE ROLE replicator LOGIN BYPASSRLS PASSWORD '…';
    GRANT CREATE ON DATABASE app TO replicator;
    GRANT USAGE ON SCHEMA public TO replicator;
    GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO replicator;
    GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO replicator;
"""


@pytest.mark.soak
def test_with_less_than_ownership_as_the_readme_says(servers_of_its_own: tuple[Server, Server], tmp_path: Path) -> None:
    """Neither owner nor `session_replication_role`: live constraints, and the owner makes the publication."""
    source, target = servers_of_its_own
    dsns = prepare(source, "source", LESS_ON_SOURCE), prepare(target, "target", LESS_ON_TARGET)
    move = Move(tmp_path, servers_of_its_own, dsns)
    move.site.more = "[snapshot]\ndefer_indexes = false\n"
    move.site.refused(1, "check", says=())
    planned = json.loads(move.site.done("plan", "--json").out)
    move.sql("source", f"SET ROLE app_owner; {planned['source_objects']['publication_sql']}")
    move.all_the_way(ordinary="passer_by")
