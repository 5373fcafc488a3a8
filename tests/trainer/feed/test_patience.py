"""Pauses between attempts, and their end."""

import pytest

from trainer.errors import FeedError, MinerUnreachableError
from trainer.feed import patience as patience_module
from trainer.feed.patience import Patience


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.pauses: list[float] = []
        monkeypatch.setattr(patience_module.time, "monotonic", lambda: self.now_s)

    def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now_s += pause_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_pauses_double_with_jitter_up_to_two_seconds(clock: Clock) -> None:
    patience = Patience("here:1", 1000.0, clock.sleep)
    for _ in range(10):
        patience.pause(FeedError("refused"))
    for attempt, pause_s in enumerate(clock.pauses):
        longest_s = min(2.0, 0.1 * 2**attempt)
        assert longest_s / 2 <= pause_s <= longest_s
    assert len(set(clock.pauses)) == 10


def test_patience_ends_with_where_how_long_and_the_last_reason(clock: Clock) -> None:
    patience = Patience("here:1", 5.0, clock.sleep)

    def try_for_ever() -> None:
        while True:
            patience.pause(FeedError("connection refused"))

    with pytest.raises(MinerUnreachableError, match=r"here:1 for 5\.0 s .*connection refused"):
        try_for_ever()
    assert 105.0 <= clock.now_s <= 105.05  # the last pause lasts as long as the shortest deadline


def test_a_sign_of_life_renews_the_patience_and_the_short_pauses(clock: Clock) -> None:
    patience = Patience("here:1", 3.0, clock.sleep)
    for _ in range(20):
        patience.pause(FeedError("x"))
        patience.pause(FeedError("x"))
        patience.renew()
    assert max(clock.pauses) <= 0.2


def test_a_hint_makes_the_pause_longer_but_not_longer_than_the_patience(clock: Clock) -> None:
    patience = Patience("here:1", 1.2, clock.sleep)
    patience.pause(FeedError("x"), 1.0)
    patience.pause(FeedError("x"), 1.0)
    assert clock.pauses == [1.0, pytest.approx(0.2)]


def test_what_is_left_can_always_serve_as_a_deadline(clock: Clock) -> None:
    patience = Patience("here:1", 1.0, clock.sleep)
    clock.now_s += 10.0
    assert patience.left_s == 0.05
