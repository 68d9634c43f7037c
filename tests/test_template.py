"""Servers that are copies are told apart as others are: else no test of ours would notice a source that is another."""

import psycopg
import pytest

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
