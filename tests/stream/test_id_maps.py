"""User IDs on their way through a real stream: mapped, missed, found later, lost."""

from __future__ import annotations

import uuid

import pytest

from replicator.errors import UnmappedId
from tests.stream.case import Case


def user(n: int) -> str:
    return str(uuid.UUID(int=n))


OWNED = "CREATE TABLE note (id int PRIMARY KEY, who uuid, v int);"


def owned(make_case, policy, ddl=OWNED, columns=("note.who",), **options) -> Case:
    case = make_case(
        ddl, id_maps={"users": {"kind": "table", "columns": list(columns), "on_unmapped": policy}}, **options
    )
    add_entries(case, {user(1): user(101)})
    return case


def add_entries(case: Case, entries: dict[str, str]) -> None:
    """As `users import` does."""
    with case.target.transaction():
        for source_id, target_id in entries.items():
            case.target.execute(
                "INSERT INTO replicator.id_map (map, source_id, target_id) VALUES ('users', %s, %s)",
                [source_id, target_id],
            )
        case.target.execute("UPDATE replicator.checkpoint SET map_version = map_version + 1")


def notes(case: Case) -> dict[int, str | None]:
    return {id_: who and str(who) for id_, who in case.rows("SELECT id, who FROM note")}


def unmapped(case: Case) -> list[tuple[str, str, str]]:
    return case.rows(
        "SELECT map, table_name || '.' || column_name, source_id FROM replicator.unmapped_id ORDER BY 1, 2, 3"
    )


def test_ids_are_mapped_and_unknown_ones_kept_and_recorded(make_case):
    case = owned(make_case, "keep")
    case.execute(f"INSERT INTO note VALUES (1, '{user(1)}'), (2, '{user(2)}'), (3, NULL)")
    case.drain()
    assert notes(case) == {1: user(101), 2: user(2), 3: None}
    assert unmapped(case) == [("users", "note.who", user(2))]


@pytest.mark.parametrize("policy", ["keep", "null"])
def test_entries_added_during_the_stream_reach_rows_written_before(make_case, policy):
    case = owned(make_case, policy)
    case.execute(f"INSERT INTO note VALUES (1, '{user(1)}'), (2, '{user(2)}'), (3, '{user(3)}'), (4, '{user(2)}')")
    case.drain()
    kept = policy == "keep"
    assert notes(case)[2] == (user(2) if kept else None)
    case.execute("UPDATE note SET who = NULL WHERE id = 4")
    case.drain()
    add_entries(case, {user(2): user(102)})
    case.wait(lambda: notes(case)[2] == user(102), "the remap")
    case.execute(f"INSERT INTO note VALUES (5, '{user(2)}')", "UPDATE note SET v = 1")
    case.drain()
    assert notes(case) == {
        1: user(101), 2: user(102), 3: user(3) if kept else None, 4: None, 5: user(102)
    }  # fmt: skip
    assert unmapped(case) == [("users", "note.who", user(3))]


def test_entries_added_while_the_stream_is_down_are_there_before_its_next_row(make_case):
    """The mapped column is the key: rows are looked for under their new ID, so the remap has to come first."""
    case = owned(make_case, "keep", "CREATE TABLE note (who uuid PRIMARY KEY, v int);")
    case.execute(f"INSERT INTO note VALUES ('{user(2)}', 0), ('{user(3)}', 0)")
    case.drain()
    case.stop()
    add_entries(case, {user(2): user(102), user(3): user(103)})
    case.execute(f"UPDATE note SET v = 1 WHERE who = '{user(2)}'", f"DELETE FROM note WHERE who = '{user(3)}'")
    case.drain()
    assert case.rows("SELECT who::text, v FROM note") == [(user(102), 1)]
    assert unmapped(case) == []


def test_policy_stop_records_the_id_and_stops_until_it_is_known(make_case):
    case = owned(make_case, "stop")
    case.execute(f"INSERT INTO note VALUES (1, '{user(1)}')")
    case.drain()
    before = case.checkpoint().applied_lsn
    case.execute(f"INSERT INTO note VALUES (2, '{user(2)}'), (3, '{user(3)}')")
    error = case.fails(UnmappedId)
    assert "note.who" in error.message
    assert user(2) not in str(error) + error.hint
    assert unmapped(case) == [("users", "note.who", user(2))]
    assert notes(case) == {1: user(101)}
    assert case.checkpoint().applied_lsn < case.source_lsn()
    assert case.checkpoint().applied_lsn >= before
    add_entries(case, {user(2): user(102), user(3): user(103)})
    case.drain()
    assert notes(case) == {1: user(101), 2: user(102), 3: user(103)}


LOOKUP = """
CREATE TABLE people (id uuid PRIMARY KEY, login uuid, v int);
CREATE TABLE note (id int PRIMARY KEY, who uuid, v int);
CREATE TABLE plain (who uuid); ALTER TABLE plain REPLICA IDENTITY FULL;
"""


def looked_up(make_case, **options) -> Case:
    return make_case(
        LOOKUP,
        id_maps={"person": {"kind": "lookup", "table": "people", "key": "login", "value": "id",
                            "columns": ["note.who", "plain.who"], "on_unmapped": "null"}},
        **options,
    )  # fmt: skip


def test_lookups_follow_their_table(make_case):
    case = looked_up(make_case)
    case.execute(f"INSERT INTO people VALUES ('{user(101)}', '{user(1)}'), ('{user(102)}', '{user(2)}')",
                 f"INSERT INTO note VALUES (1, '{user(1)}'), (2, '{user(2)}'), (3, '{user(3)}')")  # fmt: skip
    case.drain()
    assert notes(case) == {1: user(101), 2: user(102), 3: None}
    assert unmapped(case) == [("person", "note.who", user(3))]
    case.stop()
    case.execute(f"INSERT INTO people VALUES ('{user(103)}', '{user(3)}')", f"INSERT INTO note VALUES (4, '{user(3)}')")
    case.drain()
    case.wait(lambda: notes(case) == {1: user(101), 2: user(102), 3: user(103), 4: user(103)}, "the remap")
    assert unmapped(case) == []


def test_a_lookup_that_loses_an_entry_takes_it_from_the_rows_that_used_it(make_case):
    """As the route would map them today; recorded, and found again if the entry comes back."""
    case = looked_up(make_case)
    case.execute(f"INSERT INTO people VALUES ('{user(101)}', '{user(1)}'), ('{user(102)}', '{user(2)}')",
                 f"INSERT INTO note VALUES (1, '{user(1)}'), (2, '{user(2)}')",
                 f"INSERT INTO plain VALUES ('{user(1)}')")  # fmt: skip
    case.drain()
    case.execute(f"DELETE FROM people WHERE id = '{user(101)}'")
    case.drain()
    assert notes(case) == {1: None, 2: user(102)}
    assert case.rows("SELECT who FROM plain") == [(None,)]
    assert unmapped(case) == [("person", "note.who", user(1)), ("person", "plain.who", user(1))]
    assert case.rows("SELECT source_id FROM replicator.id_map") == [(user(2),)]
    case.execute("UPDATE note SET v = 1")
    case.execute(f"INSERT INTO people VALUES ('{user(111)}', '{user(1)}')")
    case.drain()
    case.wait(lambda: notes(case) == {1: user(111), 2: user(102)}, "the remap")
    assert unmapped(case) == [("person", "plain.who", user(1))], "no key tells which of its NULLs was this one"
    case.execute("TRUNCATE people")
    case.drain()
    assert notes(case) == {1: None, 2: None}
    assert case.rows("SELECT count(*) FROM replicator.id_map") == [(0,)]


def test_a_restart_takes_up_the_lookup_where_the_checkpoint_is(make_case):
    case = looked_up(make_case)
    case.execute(f"INSERT INTO people VALUES ('{user(101)}', '{user(1)}')")
    case.drain()
    case.stop()
    case.execute(
        f"UPDATE people SET login = '{user(5)}'", f"INSERT INTO note VALUES (1, '{user(1)}'), (2, '{user(5)}')"
    )
    case.drain()
    assert notes(case) == {1: None, 2: user(101)}
    assert case.rows("SELECT source_id, target_id FROM replicator.id_map") == [(user(5), user(101))]
