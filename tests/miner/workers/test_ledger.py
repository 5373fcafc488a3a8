from hypothesis import given
from hypothesis import strategies as st

from miner.workers.ledger import ChunkLedger


@given(st.integers(0, 12), st.integers(1, 4), st.data())
def test_every_chunk_is_done_once_or_given_up_after_its_attempts(num_chunks, attempts, data):
    ledger = ChunkLedger(range(num_chunks), attempts)
    done, taken, given_up = [], [], []
    at_work: list[int] = []
    while ledger.has_pending or at_work:
        if ledger.has_pending and (not at_work or data.draw(st.booleans())):
            at_work.append(ledger.take())
            taken.append(at_work[-1])
            tries = taken.count(at_work[-1])
            assert ledger.is_last_retry(at_work[-1]) == (1 < tries == attempts)
            continue
        chunk = at_work.pop(data.draw(st.integers(0, len(at_work) - 1)))
        if data.draw(st.booleans()):
            ledger.done(chunk)
            done.append(chunk)
        elif not ledger.lost(chunk):
            given_up.append(chunk)
            assert taken.count(chunk) == attempts
    assert sorted(done + given_up) == list(range(num_chunks))
    assert max((taken.count(chunk) for chunk in taken), default=0) <= attempts
    assert ledger.finished == (not given_up)


def test_a_lost_chunk_is_taken_next():
    ledger = ChunkLedger([4, 5, 6], 2)
    assert ledger.take() == 4
    assert ledger.lost(4)
    assert [ledger.take() for _ in range(3)] == [4, 5, 6]
    assert not ledger.has_pending
    assert not ledger.finished
