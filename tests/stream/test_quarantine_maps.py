"""User IDs in rows that wait: they catch up with the map like those on the target, keys included."""

from __future__ import annotations

import pytest

from replicator.target import quarantine
from tests.stream.test_id_maps import LOOKUP, add_entries, notes, unmapped, user
from tests.stream.test_quarantine import held, retry

STREAM = {"on_rejected_row": "quarantine"}


def users(policy, *columns):
    return {"users": {"kind": "table", "columns": list(columns), "on_unmapped": policy}}


@pytest.mark.parametrize("policy", ["keep", "null"])
def test_an_entry_that_comes_while_a_row_waits_reaches_the_row(make_case, policy):
    ddl = "CREATE TABLE note (id int PRIMARY KEY, who uuid, v int);"
    case = make_case(ddl, ddl + "ALTER TABLE note ADD CONSTRAINT low CHECK (v < 5);", stream=STREAM,
                     id_maps=users(policy, "note.who"))  # fmt: skip
    case.execute(f"INSERT INTO note VALUES (1, '{user(1)}', 9), (2, '{user(1)}', 0), (3, '{user(3)}', 9), (4, NULL, 9)")
    case.drain()
    assert [each[1] for each in held(case)] == ["1", "3", "4"]
    add_entries(case, {user(1): user(101)})
    case.wait(lambda: notes(case)[2] == user(101), "the remap")
    case.target.execute("ALTER TABLE note DROP CONSTRAINT low")
    assert retry(case) == 0
    missing = user(3) if policy == "keep" else None
    assert notes(case) == {1: user(101), 2: user(101), 3: missing, 4: None}
    # The third is not forgotten either.
    assert unmapped(case) == [("users", "note.who", user(3))]
    add_entries(case, {user(3): user(103)})
    case.wait(lambda: notes(case)[3] == user(103), "the remap")


def test_a_key_that_is_mapped_meanwhile_still_holds_up_its_row(make_case):
    ddl = "CREATE TABLE role (who uuid PRIMARY KEY, v int);"
    case = make_case(ddl, ddl + "ALTER TABLE role ADD CONSTRAINT low CHECK (v < 5);", stream=STREAM,
                     id_maps=users("keep", "role.who"))  # fmt: skip
    case.execute(f"INSERT INTO role VALUES ('{user(1)}', 9), ('{user(2)}', 1)")
    case.drain()
    add_entries(case, {user(1): user(101), user(2): user(102)})
    case.wait(lambda: case.rows("SELECT who::text FROM role") == [(user(102),)], "the remap")
    case.execute("UPDATE role SET v = 3")
    case.drain()
    assert [each[0] for each in held(case)] == ["insert", "update"]
    assert case.rows("SELECT v FROM role") == [(3,)]
    assert retry(case) == 0
    assert case.rows("SELECT who::text, v FROM role ORDER BY who") == [(user(101), 3), (user(102), 3)]


@pytest.mark.parametrize("together", [False, True], ids=["stored", "in its batch"])
def test_a_lookup_that_loses_its_entry_takes_it_from_rows_that_wait(make_case, together):
    case = make_case(
        LOOKUP,
        LOOKUP + "ALTER TABLE note ADD CONSTRAINT low CHECK (v < 5);",
        stream=STREAM,
        id_maps={"person": {"kind": "lookup", "table": "people", "key": "login", "value": "id",
                            "columns": ["note.who", "plain.who"], "on_unmapped": "null"}},
    )  # fmt: skip
    case.execute(f"INSERT INTO people VALUES ('{user(101)}', '{user(1)}'), ('{user(102)}', '{user(2)}')")
    case.drain()
    case.stop()
    with case.one_batch():
        case.execute(f"INSERT INTO note VALUES (1, '{user(1)}', 9), (2, '{user(2)}', 9)")
        if together:
            case.execute(f"DELETE FROM people WHERE login = '{user(1)}'")
    if not together:
        case.execute(f"DELETE FROM people WHERE login = '{user(1)}'")
        case.drain()
    assert len(held(case)) == 2
    assert unmapped(case) == [("person", "note.who", user(1))]
    case.target.execute("ALTER TABLE note DROP CONSTRAINT low")
    assert retry(case) == 0
    assert notes(case) == {1: None, 2: user(102)}
    case.execute(f"INSERT INTO people VALUES ('{user(111)}', '{user(1)}')")
    case.wait(lambda: notes(case) == {1: user(111), 2: user(102)}, "the remap")
    assert quarantine.count(case.target, case.slot) == 0
