"""Servers that are copies are told apart as others are: else no test of ours would notice a source that is another."""

import psycopg
import pytest

from tests import template
from tests.conftest import ALL_MAJORS

IDENTITY = "SELECT system_identifier FROM pg_control_system()"


@pytest.mark.parametrize("major", ALL_MAJORS)
def test_copies_have_identifiers_and_passwords_of_their_own(start_server, major):
    one, other = start_server(major), start_server(major)
    found = set()
    for server in (one, other):
        server.restart("immediate")  # recovery reads the WAL, which names the identifier as well
        with psycopg.connect(server.dsn()) as conn:
            found |= set(conn.execute(IDENTITY).fetchall())
    assert len(found) == 2
    assert one.password != other.password
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(one.dsn().replace(one.password, other.password))


def test_a_server_lies_in_memory_where_there_is_room_and_durability_is_not_the_point(start_server, pair, monkeypatch):
    assert template.memory() in (template.MEMORY, None)
    monkeypatch.setattr(template, "_ENOUGH_BYTES", 1)
    if template.memory() is None:
        pytest.skip("there is no directory in memory here")
    assert start_server(pair.target.major).data_directory.is_relative_to(template.MEMORY)
    assert not start_server(pair.target.major, durable=True).data_directory.is_relative_to(template.MEMORY)
    monkeypatch.setattr(template, "_ENOUGH_BYTES", 1 << 60)
    assert template.memory() is None
    assert not start_server(pair.target.major).data_directory.is_relative_to(template.MEMORY)
