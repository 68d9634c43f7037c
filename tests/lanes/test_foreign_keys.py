"""Foreign keys between lanes, checked while both move on: what is on its way is no orphan, what stays is one."""

from __future__ import annotations

import psycopg
import pytest

from replicator.postgres.connection import connect
from replicator.verify.foreign_keys import load_checks


class Stream:
    """Stands for the lanes: each time that it is waited for, the next change arrives."""

    def __init__(self, dsn, *changes):
        self.dsn, self.changes = dsn, list(changes)

    def wait_for_now(self):
        with psycopg.connect(self.dsn) as conn:
            conn.execute("SET session_replication_role = replica")
            if self.changes:
                conn.execute(self.changes.pop(0))


@pytest.mark.parametrize(
    ("changes", "orphans"),
    [
        (["INSERT INTO parent VALUES (1)"], 0),
        (["DELETE FROM child"], 0),
        (["INSERT INTO parent VALUES (1)", "DELETE FROM parent"], 0),
        ([], 1),
        (["INSERT INTO child VALUES (2, 9)"], 1),
        (["INSERT INTO parent VALUES (2)", "UPDATE child SET parent = 2"], 0),
    ],
    ids=["came too early", "went too late", "both came", "stays", "another comes", "was changed"],
)
def test_three_looks_tell_orphans_from_rows_on_their_way(database, changes, orphans):
    with psycopg.connect(database) as conn:
        conn.execute("CREATE TABLE parent (id int PRIMARY KEY);"
                     "CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);"
                     "SET session_replication_role = replica; INSERT INTO child VALUES (1, 1)")  # fmt: skip
        [(oid,)] = conn.execute("SELECT 'child'::regclass::oid::bigint").fetchall()
    with connect(database, "target", purpose="test") as target:
        [check] = load_checks(target, {oid})
        first = check.run(target)
        assert first.orphans == 1
        assert check.settle(first, target, Stream(database, *changes)).orphans == orphans
