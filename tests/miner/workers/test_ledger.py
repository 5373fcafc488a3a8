from hypothesis import given
from hypothesis import strategies as st

from miner.workers.ledger import LATE_S, ChunkLedger


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


def test_a_chunk_is_late_after_some_times_the_median_once_and_uncounted() -> None:
    ledger = ChunkLedger(range(6), 1, late_factor=3.0)
    assert [ledger.take(10.0) for _ in range(3)] == [0, 1, 2]
    assert ledger.next_late() is None  # nobody knows how long one takes
    for chunk, took_s in ((0, 2.0), (1, 9.0), (2, 4.0)):
        ledger.done(chunk, 10.0 + took_s)
    assert ledger.next_late() is None  # nothing is under way
    assert (ledger.take(30.0), ledger.take(25.0)) == (3, 4)
    assert ledger.next_late() == (4, 25.0 + 3 * 4.0 + LATE_S)
    ledger.late(4)
    assert ledger.next_late() == (3, 30.0 + 3 * 4.0 + LATE_S)
    assert ledger.take(50.0) == 4
    assert not ledger.is_last_retry(4)
    assert ledger.next_late() == (3, 30.0 + 3 * 4.0 + LATE_S)  # not chunk 4 again
    assert not ledger.lost(4)  # its one attempt


@given(st.lists(st.floats(0.0, 9.0), max_size=8), st.integers(0, 3))
def test_without_a_factor_nothing_is_late(took_s: list[float], num_taken: int) -> None:
    ledger = ChunkLedger(range(20), 2)
    for seconds in took_s:
        ledger.done(ledger.take(0.0), seconds)
    for _ in range(num_taken):
        ledger.take(0.0)
    assert ledger.next_late() is None
