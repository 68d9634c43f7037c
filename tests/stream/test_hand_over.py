"""After a cutover has finalized, the target is its own: nothing more is applied."""

from __future__ import annotations

import psycopg

from replicator.stream.run import Outcome
from tests.stream.case import TIMEOUT_S


def test_a_batch_after_the_hand_over_is_not_applied(make_case):
    """The phase changes while a batch is on its way: the commit itself has to notice, not the next look a second on."""
    case = make_case("CREATE TABLE t (id int PRIMARY KEY)")
    case.drain()
    with psycopg.connect(case.pair.target_dsn) as holder:
        holder.execute("LOCK TABLE t IN SHARE MODE")  # the batch waits here …
        case.execute("INSERT INTO t VALUES (1)")
        case.execute("SELECT pg_sleep(0.3)")
        case.target.execute("UPDATE replicator.checkpoint SET phase = 'cut_over'")  # … while the cutover finalizes
    case._thread.join(TIMEOUT_S)
    assert case.error is None
    assert case.outcome is Outcome.FINALIZED
    assert case.rows("SELECT count(*) FROM t") == [(0,)]
