from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import ConfigError
from replicator.model.schema import ForeignKey, Table
from replicator.routing.route import Route
from snapshot.plan import TableCopy, choose, grouped, plan_copies, split_pages


@given(pages=st.integers(0, 10_000), count=st.integers(1, 200))
def test_ranges_cover_every_page_once_and_stay_open_at_the_end(pages, count):
    ranges = split_pages(pages, count)
    assert ranges[0].first == 0
    assert ranges[-1].end is None
    assert all(before.end == after.first for before, after in pairwise(ranges))
    assert all(part.end is None or part.first < part.end for part in ranges)
    assert len(ranges) == max(1, min(count, pages))
    sizes = [(part.end or pages) - part.first for part in ranges]
    assert max(sizes) - min(sizes) <= 1


def table(name, size, kind="r", refers_to=None):
    keys = () if refers_to is None else (ForeignKey("k", ("id",), ("public", refers_to), ("id",), "a"),)
    return Table(
        name=("public", name),
        oid=sum(map(ord, name)),
        kind=kind,
        type_oid=0,
        type_array_oid=0,
        columns=(),
        primary_key=(),
        replica_identity="d",
        identity_index=(),
        foreign_keys=keys,
        rows_estimate=0,
        bytes_estimate=size,
        row_security=False,
        owner="postgres",
    )


def route(source, target=None):
    return Route(source, target or source, (), (), ())


def parts(one, *, replica=True, pages=1000, workers=4):
    plan = plan_copies([one], {one.source.oid: pages}, split_above=1 << 20, workers=workers, replica=replica)
    return plan[one.name].parts


def test_only_big_ordinary_tables_are_split():
    assert parts(route(table("t", 1 << 20))) == (None,)
    assert len(parts(route(table("t", (1 << 20) + 1)))) == 4
    assert len(parts(route(table("t", 9 << 20)))) == 9
    assert parts(route(table("t", 9 << 20, kind="p"))) == (None,)


def test_a_table_that_is_more_than_a_workers_share_is_split_however_high_the_limit():
    big, small = route(table("big", 40 << 20)), route(table("small", 15 << 20))

    def parts_of(*routes, workers):
        pages = {each.source.oid: 5_000 for each in routes}
        plan = plan_copies(routes, pages, split_above=1 << 30, workers=workers, replica=True)
        return {name: len(each.parts) for (_, name), each in plan.items()}

    assert parts_of(big, small, workers=4) == {"big": 4, "small": 1}
    assert parts_of(small, workers=4) == {"small": 1}
    assert parts_of(big, workers=1) == {"big": 1}
    others = [route(table(f"other{n}", 35 << 20)) for n in range(8)]
    assert parts_of(big, *others, workers=4)["big"] == 1


def test_a_table_that_references_itself_stays_whole_where_constraints_are_live():
    """A row may reference one that another part has not committed yet."""
    one = route(table("t", 9 << 20, refers_to="t"))
    assert parts(one, replica=False) == (None,)
    assert len(parts(one, replica=True)) == 9
    assert len(parts(route(table("t", 9 << 20, refers_to="other")), replica=False)) == 9


def test_rows_of_a_table_without_statistics_are_guessed_from_its_size():
    one = route(table("t", 1 << 20))
    assert plan_copies([one], {}, split_above=1, workers=1, replica=True)[one.name].rows_estimate == 8192
    known = route(replace(one.source, rows_estimate=5))
    assert plan_copies([known], {}, split_above=1, workers=1, replica=True)[one.name].rows_estimate == 5


@given(
    sizes=st.lists(
        st.tuples(st.integers(0, 3 << 20), st.integers(0, 12_000), st.sampled_from([1, 1, 1, 3])), max_size=99
    )
)
def test_small_tables_are_copied_together_and_no_other_table_is(sizes):
    """Each table once, the largest groups first; a group is never more than one transaction should hold."""
    copies = [
        TableCopy(Route(table(str(n), size), table(str(n), size), (), (), ()), (None,) * parts, rows, size)
        for n, (size, rows, parts) in enumerate(sizes)
    ]
    groups = grouped(copies, small_rows=10_000)
    assert sorted(copy.name for group in groups for copy in group) == sorted(copy.name for copy in copies)
    weights = [sum(copy.bytes_estimate for copy in group) for group in groups]
    assert weights == sorted(weights, reverse=True)
    for group, weight in zip(groups, weights, strict=True):
        if len(group) > 1:
            assert all(copy.rows_estimate < 10_000 and copy.parts == (None,) for copy in group)
            assert weight <= 2 << 20
            assert len(group) <= 32
    small = [copy for copy in copies if copy.rows_estimate < 10_000 and copy.parts == (None,)]
    if sum(copy.bytes_estimate for copy in small) <= 1 << 20 and len(small) <= 32:
        assert sum(group[0] in small for group in groups) <= 1


def test_options_choose_by_the_target_tables_name():
    a, b = route(table("a", 1), table("x", 1)), route(table("b", 1))
    assert choose([a, b], None, ()) == [a, b]
    assert choose([a, b], [("public", "x")], ()) == [a]
    assert choose([a, b], None, [("public", "x")]) == [b]
    with pytest.raises(ConfigError, match="a is not in the plan"):
        choose([a, b], None, [("public", "a")])
