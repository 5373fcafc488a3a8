"""A watched call is cancelled once it has been silent for too long, and never otherwise."""

import threading
import time

from trainer.feed.silence import SilenceWatch


class Call:
    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> bool:
        self.cancelled.set()
        return True


def test_a_silent_call_is_cancelled_and_said_to_be() -> None:
    call = Call()
    with SilenceWatch() as silence:
        begin_s = time.monotonic()
        silence.watch(call, 0.2)
        assert call.cancelled.wait(10)
        assert time.monotonic() - begin_s >= 0.2
        assert not silence.rest()


def test_a_call_that_shows_signs_of_life_or_has_ended_is_left_alone() -> None:
    call = Call()
    with SilenceWatch() as silence:
        for _ in range(10):
            silence.watch(call, 0.4)
            time.sleep(0.05)
        assert silence.rest()
        time.sleep(0.5)
    assert not call.cancelled.is_set()


def test_a_sooner_end_is_kept_although_a_later_one_was_waited_for() -> None:
    patient, hasty = Call(), Call()
    with SilenceWatch() as silence:
        silence.watch(patient, 60)
        time.sleep(0.05)
        silence.rest()
        silence.watch(hasty, 0.05)
        assert hasty.cancelled.wait(10)
    assert not patient.cancelled.is_set()
