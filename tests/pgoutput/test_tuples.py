"""The loop over columns in both its forms: compiled, and as it runs where there is no compiler."""

from __future__ import annotations

import importlib.util
import os
import shutil
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.model.row import NULL, UNCHANGED
from replicator.pgoutput import tuples


def plain():
    """The module as Python runs it."""
    path = Path(tuples.__file__).with_name("tuples.py")
    loader = SourceFileLoader("tuples_uncompiled", str(path))
    spec = importlib.util.spec_from_loader("tuples_uncompiled", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


PLAIN = plain()
COLUMN = st.one_of(
    st.just(b"n"),
    st.just(b"u"),
    st.tuples(st.sampled_from(b"bt"), st.binary(max_size=300)).map(
        lambda kind: bytes([kind[0]]) + len(kind[1]).to_bytes(4, "big") + kind[1]
    ),
)
TUPLE = st.lists(COLUMN, max_size=12).map(lambda columns: len(columns).to_bytes(2, "big") + b"".join(columns))


@pytest.mark.skipif(not os.environ.get("CI") and shutil.which("cc") is None, reason="no C compiler here")
def test_where_there_is_a_compiler_it_is_compiled():
    assert Path(tuples.__file__).suffix == ".so"


def outcome(module, data, pos):
    try:
        row, end = module.tuple_data(data, pos)
    except IndexError:
        return "cut short"
    return [(bytes(field), type(field).__name__) for field in row], end


@given(TUPLE, st.binary(max_size=40), st.data())
def test_both_forms_read_the_same(encoded, header, draw):
    """Whole, cut at any byte, and with a byte changed: lengths with the highest bit set among them."""
    whole = header + encoded
    at = draw.draw(st.integers(0, len(whole)))
    changed = whole[:at] + draw.draw(st.sampled_from([b"", b"\xff", b"\x80", b"\0", b"b"])) + whole[at + 1 :]
    for data in (whole, whole[:at], changed):
        assert outcome(tuples, data, len(header)) == outcome(PLAIN, data, len(header))


@pytest.mark.parametrize("module", [tuples, PLAIN], ids=["installed", "uncompiled"])
def test_every_kind_of_column(module):
    data = b"?\0\4" + b"b\0\0\0\2hi" + b"n" + b"u" + b"t\0\0\0\1x"
    row, end = module.tuple_data(data, 1)
    assert row == (b"\0\0\0\2hi", NULL, UNCHANGED, b"\0\0\0\1x")
    assert end == len(data)
    assert [type(field).__name__ for field in row] == ["bytes", "bytes", "bytes", "TextField"]
    assert module.tuple_data(b"\0\1x", 0)[1] == -1
    assert module.tuple_data(b"\xff\xff" + bytes(70_000), 0)[1] == -1
    assert module.tuple_data(b"\0\1b\xff\xff\xff\xffhi", 0)[1] == 7 + 0xFFFFFFFF


@pytest.mark.parametrize("module", [tuples, PLAIN], ids=["installed", "uncompiled"])
def test_offsets_beyond_the_message_are_an_error(module):
    for pos in (1, 2, 1000):
        with pytest.raises(IndexError):
            module.tuple_data(b"\0", pos)
