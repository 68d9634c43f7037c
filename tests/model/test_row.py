"""Rows as COPY and pgoutput write them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.model.row import NULL, UNCHANGED, field, join, split

ROWS = st.lists(st.one_of(st.just(NULL), st.binary(max_size=300).map(field)), max_size=30).map(tuple)


@given(ROWS, st.binary(max_size=9))
def test_join_and_split_are_inverse(row, before):
    assert split(join(row)) == row
    assert split(before + join(row), len(before)) == row


def test_wire_form():
    assert field(b"") == bytes(4)
    assert field(b"ab") == b"\0\0\0\2ab"
    assert join((field(b"ab"), NULL)) == b"\0\2\0\0\0\2ab\xff\xff\xff\xff"


def test_no_field_is_mistaken_for_null_or_unchanged():
    """A value of 0xffffffff has a length before it; UNCHANGED is shorter than any length."""
    assert field(NULL) != NULL
    assert field(UNCHANGED) != UNCHANGED
    assert split(join((field(NULL), field(UNCHANGED)))) == (field(NULL), field(UNCHANGED))
