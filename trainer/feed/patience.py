"""How long a client goes on trying: jittered back-off, bounded by the time since the last success.

It knows no request. Not shared between threads.
"""

import random
import time
from collections.abc import Callable

from trainer.errors import FeedError, LimitError, MinerUnreachableError

__all__ = ["Patience"]

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


class Patience:
    """Counts the seconds since the last sign of life and paces the attempts in between.

    Args:
        address: Named in the error.
        patience_s: Seconds without a sign of life after which :meth:`pause` raises.
        sleep: Called with the seconds to wait; an ``Event.wait`` makes the pause interruptible.
    """

    def __init__(
        self, address: str, patience_s: float, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._address = address
        self._patience_s = patience_s
        self._sleep = sleep
        self.renew()

    def renew(self) -> None:
        """Note a sign of life."""
        self._last_sign_s = time.monotonic()
        self._attempts = 0

    @property
    def left_s(self) -> float:
        """Seconds until the patience ends; at least 50 ms, so that it can serve as a deadline."""
        return max(0.05, self._patience_s - (time.monotonic() - self._last_sign_s))

    def pause(self, error: FeedError, at_least_s: float = 0.0) -> None:
        """Wait before the next attempt.

        The pause doubles from attempt to attempt, up to 2 s, and is drawn from the upper half of
        its range, so that the ranks of a job do not return all at once.

        Raises:
            MinerUnreachableError: If the last sign of life is ``patience_s`` ago; carries the text
                of ``error``, the newest failure.
            LimitError: Likewise, where that is what the miner has answered.
        """
        silent_s = time.monotonic() - self._last_sign_s
        if silent_s >= self._patience_s:
            if isinstance(error, LimitError):
                raise error
            raise MinerUnreachableError(
                f"no answer from the miner at {self._address} for {silent_s:.1f} s "
                f"(patience_s={self._patience_s:g}); the last attempt said: {error}. "
                "Check that the miner runs there, that address and port are right, and whether it "
                "wants TLS (tls=...)"
            ) from error
        longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._attempts, 16))
        self._attempts += 1
        pause_s = max(at_least_s, longest_s * random.uniform(0.5, 1.0))
        self._sleep(min(pause_s, self.left_s))
