"""Names of tables, and which columns identify a row."""

from __future__ import annotations

import pytest

from replicator.model.schema import parse_table_name, show_table
from tests.routing.tables import column, table


def test_names():
    assert parse_table_name("items") == ("public", "items")
    assert parse_table_name("app.items") == ("app", "items")
    assert parse_table_name("app.a.b") == ("app", "a.b")
    assert show_table(("public", "items")) == "items"
    assert show_table(("app", "items")) == "app.items"


@pytest.mark.parametrize(("identity", "key"), [("d", ("id",)), ("f", ("id",)), ("i", ("slug",)), ("n", ())])
def test_the_key_follows_the_replica_identity(identity, key):
    made = table("t", [column("id"), column("slug")], key=("id",), identity=identity, index=("slug",))
    assert made.key == key


def test_full_without_a_primary_key_has_no_key():
    assert table("t", [column("id")], identity="f").key == ()
