"""The rigs of the endurance tests."""

from tests.endurance.conftest import keep, make_freshtrack, make_plain, rng

__all__ = ["keep", "make_freshtrack", "make_plain", "rng"]
