"""LSNs read and print as PostgreSQL writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.model.lsn import ZERO, Lsn


@given(st.integers(0, 2**64 - 1))
def test_text_and_back(position):
    assert Lsn.parse(str(Lsn(position))) == position


def test_known_texts():
    assert Lsn.parse("16/B374D848") == 0x16_B374D848
    assert str(Lsn(0x16_B374D848)) == "16/B374D848"
    assert str(ZERO) == "0/0"
    assert repr(Lsn(1 << 32)) == "Lsn('1/0')"
    assert Lsn.parse("ffffffff/0000000a") == 0xFFFFFFFF_0000000A


def test_order_is_by_position_not_by_text():
    assert Lsn.parse("9/0") < Lsn.parse("10/0")
    assert max(Lsn.parse("0/FF"), Lsn.parse("0/100")) == Lsn.parse("0/100")


@pytest.mark.parametrize(
    "text",
    ["", "0", "/", "1/", "/1", "1/2/3", "G/0", "123456789/0", "0/123456789", "-1/0", "0/-1", "0x1/0", " 1/0", "1_0/0"],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="not an LSN"):
        Lsn.parse(text)
