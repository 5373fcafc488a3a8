"""Counter-based random numbers: a draw is a function of what it is for, never of what came before.

Philox4x32-10, so that a draw for (anchor, candidate) is the same in any order and batch
of work, on any machine and with any NumPy release. It keeps no state and knows nothing of mining.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from miner.compiled import compiled, read_only

__all__ = ["RoundSeed", "Stream", "draw_below", "draw_bits", "draw_gumbel", "stream_key"]

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEP_0, _KEY_STEP_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)

U64 = npt.NDArray[np.uint64]


class Stream(IntEnum):
    """What a draw is for; two uses of one stream must differ in another part of the key.

    The numbers are part of what makes a round repeatable: never change or reuse one.
    """

    IDENTITY_ORDER = 1
    ROW_ROTATION = 2
    ANCHOR_ORDER = 3
    POSITIVE = 4
    WINDOW = 5
    FILL = 6
    DEAL = 7
    SPREAD = 8
    ROUND_ORDER = 9
    PLAN_ORDER = 10
    GUMBEL = 11
    RANDOM_SLOT = 12
    SUSPECT_ROWS = 13


@dataclass(frozen=True, slots=True)
class RoundSeed:
    """What all draws of one round are keyed with."""

    seed: int
    round_id: int

    def key(self, stream: Stream, index: int = 0) -> int:
        """The key of one stream of this round; see :func:`stream_key`."""
        return stream_key(self.seed, self.round_id, stream, index)


def stream_key(seed: int, round_id: int, stream: Stream, index: int = 0) -> int:
    """A 64-bit key, unrelated to the keys of any other (seed, round, stream, index).

    Args:
        seed: Any integer; taken modulo 2**64.
        round_id: Modulo 2**64; 0 for draws that stay the same over the rounds.
        stream: What the draws are for.
        index: Distinguishes several draws for one purpose, modulo 2**32.
    """
    word = 1 << 32
    counter = (round_id % word, (round_id >> 32) % word, int(stream), index % word)
    return int(_philox(np.uint64(seed % (1 << 64)), *(np.uint64(part) for part in counter)))


def draw_bits(
    key: int, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64] | int = 0
) -> U64:
    """64 uniform random bits for each pair ``(first, second)`` under ``key``.

    Guarantee: a pure function of the three values, element by element.

    Args:
        key: From :func:`stream_key`.
        first: [n] int64, >= 0.
        second: [n] int64 or one number, >= 0.

    Returns:
        [n] uint64.

    Cost: about 0.02 us a draw, O(n) memory.
    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011), Philox4x32-10.

    Example:
        >>> key = stream_key(7, 1, Stream.WINDOW)
        >>> both = draw_bits(key, np.array([3, 4]))
        >>> bool(both[1] == draw_bits(key, np.array([4]))[0])
        True
    """
    first_n, second_n = np.broadcast_arrays(np.asarray(first), np.asarray(second))
    bits_n = np.empty(first_n.shape, np.uint64)
    first_n, second_n = (np.ascontiguousarray(part, np.int64) for part in (first_n, second_n))
    _draw(np.uint64(key), read_only(first_n), read_only(second_n), bits_n)
    return bits_n


def draw_below(bits: U64, bounds: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int64]:
    """Uniform integers in ``[0, bounds)`` out of random bits; ``bounds`` in ``[1, 2**31]``.

    The bias of any value is below ``bounds / 2**32``.
    """
    scaled: U64 = (bits >> _HALF) * np.asarray(bounds, np.uint64)
    return (scaled >> _HALF).astype(np.int64)


def draw_gumbel(
    key: int, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise for each pair under ``key``; see :func:`draw_bits`.

    Adding it to logarithms of weights and sorting draws without replacement in proportion to the
    weights.

    Source: Kool et al., Stochastic beams and where to find them (2019), the Gumbel-top-k trick.
    """
    uniform_n = ((draw_bits(key, first, second) >> np.uint64(12)) + 0.5) * 2.0**-52
    noise_n: npt.NDArray[np.float64] = -np.log(-np.log(uniform_n))
    return noise_n


@compiled
def _draw(
    key: np.uint64,
    first_n: npt.NDArray[np.int64],
    second_n: npt.NDArray[np.int64],
    bits_n: U64,
) -> None:
    for place in range(len(bits_n)):
        a, b = np.uint64(first_n[place]), np.uint64(second_n[place])
        bits_n[place] = _philox(key, a & _LOW, a >> _HALF, b & _LOW, b >> _HALF)


@compiled
def _philox(key: np.uint64, c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64) -> Any:
    """Ten rounds over 32-bit counter words; the first two words of the block, low word first."""
    k0, k1 = key & _LOW, key >> _HALF
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW
        c2, c3 = (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _KEY_STEP_0) & _LOW, (k1 + _KEY_STEP_1) & _LOW
    return c0 | (c1 << _HALF)
