"""Names of tables, and which columns identify a row."""

from __future__ import annotations

import pytest

from replicator.model.schema import parse_column_name, parse_table_name, show_table
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


NAMES = [
    (("public", "orders"), "orders"),
    (("sales", "orders"), "sales.orders"),
    (("public", "a.b"), '"a.b"'),
    (("my.schema", "a.b"), '"my.schema"."a.b"'),
    (("public", 'say "hi"'), '"say ""hi"""'),
    (("public", '"'), '""""'),
    (("public", '"x"'), '"""x"""'),
    (("public", 'x"; DROP TABLE y; --'), '"x""; DROP TABLE y; --"'),
    (("sp ace", "%s {} \\ '; 🦊"), "sp ace.%s {} \\ '; 🦊"),
]


@pytest.mark.parametrize(("name", "text"), NAMES)
def test_a_name_reads_as_it_is_shown(name, text):
    """What a message or `status` shows can be given to `--table`."""
    assert show_table(name) == text
    assert parse_table_name(text) == name
    assert parse_column_name(f"{text}.id") == (*name, "id")
    assert parse_column_name(f'{text}."a.""b"') == (*name, 'a."b')


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a.b.c", ("a", "b.c")),
        ("sales.a.b", ("sales", "a.b")),
        ('it"s', ("public", 'it"s')),
        ('"half', ("public", '"half')),
        ('"a"b.c', ('"a"b', "c")),
        ('sales."a.b"', ("sales", "a.b")),
        ("public.", ("public", "")),
    ],
)
def test_names_that_are_not_quoted(text, name):
    assert parse_table_name(text) == name


def test_a_name_that_would_drive_a_terminal_is_shown_without():
    shown = show_table(("public", "a\n\x1b[2J\u202eb"))
    assert shown == "a\\n\\x1b[2J\\u202eb"


def test_a_column_needs_its_table():
    with pytest.raises(ValueError, match=r"table\.column"):
        parse_column_name("id")
