"""The queue between receiver and applier: bounds, merging, positions, the end."""

from __future__ import annotations

import threading
import time

import pytest

from replicator.errors import TransientError
from replicator.model.lsn import Lsn
from replicator.stream.assembler import Position
from replicator.stream.batch import Batch, Truncation
from replicator.stream.inbox import Inbox


def batch(end=0, *, events=1, size=10, **options):
    return Batch(events=[Truncation((), False)] * events, size=size, end_lsn=Lsn(end), transactions=1, **options)


def inbox(rows=100, size=1000):
    return Inbox(max_rows=rows, max_bytes=size)


def drain(box):
    taken = []
    while (one := box.take(0)) is not None:
        taken.append(one)
    return taken


def test_nothing_in_time():
    started = time.monotonic()
    assert inbox().take(0.05) is None
    assert time.monotonic() - started >= 0.05


def test_transactions_merge_while_they_wait():
    box = inbox()
    for end in (10, 20, 30):
        box.put(batch(end))
    assert not box.is_empty
    [one] = drain(box)
    assert (len(one.events), one.transactions, one.end_lsn, one.size) == (3, 3, 30, 30)
    assert box.is_empty


def test_what_was_taken_grows_no_more():
    box = inbox()
    box.put(batch(10))
    first = box.take(0)
    box.put(batch(20))
    assert (len(first.events), len(drain(box))) == (1, 1)


@pytest.mark.parametrize(("limits", "each"), [({"rows": 4}, {"events": 2}), ({"size": 20}, {"size": 10})])
def test_a_batch_grows_up_to_its_limits(limits, each):
    box = inbox(**limits)
    for end in range(1, 6):
        box.put(batch(end, **each))
    assert [one.transactions for one in drain(box)] == [2, 2, 1]


def test_what_is_known_to_come_next_is_what_comes_next():
    box = inbox(rows=4)
    assert box.upcoming() is None
    box.put(batch(10, events=2))
    assert box.upcoming() is None, "it still grows"
    box.put(batch(20, events=2))
    box.put(batch(30, events=2))
    known = box.upcoming()
    assert known is not None
    box.put(Position(Lsn(35)))
    box.put(batch(40, events=2))
    assert (len(known.events), known.end_lsn) == (4, 20)
    assert box.take(0) is known
    box.put(batch(complete=False))
    box.take(0)
    assert box.upcoming() is not None, "a part of a transaction does not grow"


def test_one_transaction_may_exceed_the_limits():
    box = inbox(rows=1, size=1)
    box.put(batch(10, events=5, size=50))
    assert len(drain(box)[0].events) == 5


def test_parts_of_a_transaction_stay_apart():
    box = inbox()
    box.put(batch(10))
    box.put(batch(complete=False))
    box.put(batch(complete=False, final_part=True))
    box.put(batch(40, final_part=True))
    box.put(batch(50))
    box.put(batch(60))
    assert [(one.complete, one.end_lsn) for one in drain(box)] == [
        (True, 10),
        (False, 0),
        (False, 0),
        (True, 40),
        (True, 60),
    ]


def test_a_position_never_comes_out_between_the_parts_of_a_transaction():
    """It would be committed there, and with it what came before it of the transaction."""
    box = inbox()
    box.put(Position(Lsn(5)))
    box.put(batch(complete=False))
    assert not box.take(0).complete
    assert box.take(0) is None
    box.put(batch(40, final_part=True))
    assert [one.end_lsn for one in drain(box)] == [40]


def test_a_position_in_front_of_a_batch_goes_with_it():
    box = inbox()
    box.put(Position(Lsn(5)))
    box.put(Batch(remap=True))
    assert [(one.remap, one.end_lsn) for one in drain(box)] == [(True, 5)]


def test_rows_that_were_mapped_anew_wait_for_the_remap():
    box = inbox()
    box.put(batch(10))
    box.put(Batch(remap=True))
    box.put(batch(20))
    assert [(one.remap, one.end_lsn) for one in drain(box)] == [(True, 10), (False, 20)]


def test_a_position_moves_with_what_is_before_it():
    """Invariant 3: it is no news that nothing is pending as long as something is."""
    box = inbox()
    box.put(batch(10))
    box.put(Position(Lsn(15)))
    box.put(Position(Lsn(12)))
    [one] = drain(box)
    assert (one.end_lsn, len(one.events)) == (15, 1)


def test_a_position_alone():
    box = inbox()
    box.put(Position(Lsn(15)))
    box.put(Position(Lsn(12)))
    assert box.is_empty
    [one] = drain(box)
    assert (one.end_lsn, one.events, one.transactions, one.complete) == (15, [], 0, True)


def test_a_position_does_not_end_an_open_transaction():
    box = inbox()
    box.put(batch(complete=False))
    box.put(Position(Lsn(99)))
    assert box.take(0).end_lsn == 0


def test_full_at_twice_the_bytes_of_a_batch():
    box = inbox(size=100)
    box.put(batch(10, size=199))
    assert not box.is_full
    assert box.wait_for_room(0)
    box.put(batch(20, size=1))
    assert box.is_full
    assert not box.wait_for_room(0.01)
    box.take(0)
    assert not box.is_full


def test_room_is_told_to_the_thread_that_waits():
    box = inbox(size=1)
    box.put(batch(10, size=5))
    seen = []
    thread = threading.Thread(target=lambda: seen.append(box.wait_for_room(10)))
    thread.start()
    time.sleep(0.05)
    box.take(0)
    thread.join(5)
    assert seen == [True]


def test_an_error_comes_behind_what_was_received():
    box = inbox()
    box.put(batch(10))
    box.put(Position(Lsn(20)))
    box.close(TransientError("gone"))
    box.close(ValueError("later"))
    assert box.take(0).end_lsn == 20
    for _ in range(2):
        with pytest.raises(TransientError, match="gone"):
            box.take(0)


def test_an_error_comes_behind_a_position_too():
    box = inbox()
    box.put(Position(Lsn(20)))
    box.close(TransientError("gone"))
    assert box.take(0).end_lsn == 20
    with pytest.raises(TransientError):
        box.take(0)


def test_closing_wakes_both_threads():
    box = inbox(size=1)
    threads = [threading.Thread(target=box.take, args=(10,)), threading.Thread(target=box.wait_for_room, args=(10,))]
    threads[0].start()
    time.sleep(0.05)
    box.close()
    threads[0].join(5)
    box.put(batch(10, size=5))
    threads[1].start()
    threads[1].join(5)
    assert not any(thread.is_alive() for thread in threads)


def test_two_threads_lose_nothing_and_keep_the_order():
    box = inbox(rows=7, size=500)

    def produce():
        for end in range(1, 3001):
            while not box.wait_for_room(5):
                pass
            box.put(batch(end, size=50))
        box.close(TransientError("end"))

    thread = threading.Thread(target=produce)
    thread.start()
    transactions, last = 0, 0
    with pytest.raises(TransientError):
        while True:
            one = box.take(5)
            assert one.end_lsn > last
            assert len(one.events) <= 7
            transactions, last = transactions + one.transactions, one.end_lsn
    thread.join(5)
    assert (transactions, last) == (3000, 3000)
