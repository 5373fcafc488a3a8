from hypothesis import given
from hypothesis import strategies as st

from miner.workers.ledger import LATE_ALONE_S, LATE_S, ChunkLedger


@given(st.integers(0, 12), st.integers(1, 4), st.data())
def test_every_chunk_is_done_once_or_given_up_after_its_attempts(num_chunks, attempts, data):
    ledger = ChunkLedger(range(num_chunks), attempts)
    done, taken, given_up = [], [], []
    at_work: list[int] = []
    while ledger.has_pending or at_work:
        if ledger.has_pending and (not at_work or data.draw(st.booleans())):
            at_work.append(ledger.take(0.0))
            taken.append(at_work[-1])
            tries = taken.count(at_work[-1])
            assert ledger.is_last_retry(at_work[-1]) == (1 < tries == attempts)
            continue
        chunk = at_work.pop(data.draw(st.integers(0, len(at_work) - 1)))
        if data.draw(st.booleans()):
            ledger.done(chunk, 1.0)
            done.append(chunk)
        elif not ledger.lost(chunk):
            given_up.append(chunk)
            assert taken.count(chunk) == attempts
    assert sorted(done + given_up) == list(range(num_chunks))
    assert max((taken.count(chunk) for chunk in taken), default=0) <= attempts
    assert ledger.finished == (not given_up)


def test_a_lost_chunk_is_taken_next():
    ledger = ChunkLedger([4, 5, 6], 2)
    assert ledger.take(0.0) == 4
    assert ledger.lost(4)
    assert [ledger.take(0.0) for _ in range(3)] == [4, 5, 6]
    assert not ledger.has_pending
    assert not ledger.finished


def with_a_median_of_4_s(max_attempts: int, timeout_s: float | None = None) -> ChunkLedger:
    ledger = ChunkLedger(range(6), max_attempts, late_factor=3.0, timeout_s=timeout_s)
    assert [ledger.take(10.0) for _ in range(3)] == [0, 1, 2]
    for chunk, took_s in ((0, 2.0), (1, 9.0), (2, 4.0)):
        ledger.done(chunk, 10.0 + took_s)
    return ledger


LATE_S_OF_4 = 3 * 4.0 + LATE_S


def test_a_chunk_is_late_after_some_times_the_median_once_and_uncounted() -> None:
    ledger = with_a_median_of_4_s(max_attempts=1)
    assert ledger.next_overdue(is_anyone_idle=True) is None  # nothing is under way
    assert (ledger.take(30.0), ledger.take(25.0)) == (3, 4)
    assert ledger.next_overdue(is_anyone_idle=True) == (4, 25.0 + LATE_S_OF_4)
    assert ledger.overdue(4)
    assert ledger.next_overdue(is_anyone_idle=True) == (3, 30.0 + LATE_S_OF_4)
    assert ledger.take(50.0) == 4
    assert not ledger.is_last_retry(4)
    assert ledger.next_overdue(is_anyone_idle=True) == (3, 30.0 + LATE_S_OF_4)  # 4 is not again
    assert not ledger.lost(4)  # its one attempt


def test_a_chunk_is_also_late_while_all_have_work_but_not_within_a_minute() -> None:
    ledger = with_a_median_of_4_s(max_attempts=1)
    ledger.take(30.0)
    assert ledger.next_overdue(is_anyone_idle=False) == (3, 30.0 + LATE_ALONE_S)
    slow = ChunkLedger(range(4), 1, late_factor=3.0)
    for begin_s in (0.0, 40.0, 80.0):
        slow.done(slow.take(begin_s), begin_s + 40.0)
    slow.take(120.0)
    assert slow.next_overdue(is_anyone_idle=False) == (3, 120.0 + 3 * 40.0 + LATE_S)


def test_a_chunk_that_was_late_or_of_unknown_length_is_lost_after_the_timeout() -> None:
    ledger = ChunkLedger(range(6), 2, late_factor=3.0, timeout_s=100.0)
    ledger.take(5.0)
    assert ledger.next_overdue(is_anyone_idle=True) == (0, 105.0)  # nobody knows how long one takes
    assert ledger.overdue(0)
    assert ledger.take(110.0) == 0
    assert ledger.is_last_retry(0)
    assert not ledger.overdue(0)  # that was the second of two attempts
    known = with_a_median_of_4_s(max_attempts=1, timeout_s=100.0)
    assert known.take(30.0) == 3
    assert known.overdue(3)
    assert known.take(50.0) == 3
    assert known.next_overdue(is_anyone_idle=True) == (3, 150.0)
    assert not known.overdue(3)


@given(st.lists(st.floats(0.0, 9.0), max_size=8), st.integers(0, 3))
def test_without_a_factor_and_a_timeout_nothing_is_late(took_s: list[float], taken: int) -> None:
    ledger = ChunkLedger(range(20), 2)
    for seconds in took_s:
        ledger.done(ledger.take(0.0), seconds)
    for _ in range(taken):
        ledger.take(0.0)
    assert ledger.next_overdue(is_anyone_idle=True) is None
