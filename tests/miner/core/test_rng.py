"""Counter-based draws."""

import numpy as np
import pytest

from miner.core.rng import RoundSeed, Stream, _philox, draw_below, draw_bits, stream_key


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        (0, (0, 0, 0, 0), 0xE169C58D6627E8D5),
        ((1 << 64) - 1, (0xFFFFFFFF,) * 4, 0x41C83B0E408F276D),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x94FDCCEBD16CFE09,
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(key, counter, expected):
    words = (np.uint64(word) for word in counter)
    assert int(_philox(np.uint64(key), *words)) == expected


def test_a_draw_depends_on_its_own_pair_only():
    key = stream_key(3, 1, Stream.WINDOW)
    first, second = np.arange(20_000) % 171, np.arange(20_000) // 171
    bits = draw_bits(key, first, second)
    order = np.random.default_rng(0).permutation(20_000)
    assert np.array_equal(draw_bits(key, first[order], second[order]), bits[order])
    assert bits[777] == draw_bits(key, first[777:778], second[777:778])[0]


def test_draws_differ_by_seed_round_stream_index_and_both_counters():
    keys = [stream_key(s, r, t, i) for s in (0, 1) for r in (0, 1) for t in Stream for i in (0, 1)]
    assert len(set(keys)) == len(keys)
    bits = draw_bits(keys[0], np.repeat(np.arange(100), 100), np.tile(np.arange(100), 100))
    assert len(np.unique(bits)) == 10_000


def test_large_and_negative_seeds_and_large_row_ids_are_taken():
    assert stream_key(-1, 1, Stream.FILL) == stream_key(2**64 - 1, 1, Stream.FILL)
    assert stream_key(1, 2**40, Stream.FILL) != stream_key(1, 0, Stream.FILL)
    low, high = draw_bits(0, np.array([5, 5 + 2**40]))
    assert low != high


def test_numbers_below_a_bound_are_uniform():
    draws = draw_below(draw_bits(RoundSeed(1, 1).key(Stream.POSITIVE), np.arange(70_000)), 7)
    counts = np.bincount(draws, minlength=7)
    assert len(counts) == 7
    assert np.abs(counts - 10_000).max() < 400  # about four standard deviations


def test_one_is_the_only_number_below_one():
    assert draw_below(np.array([0, 2**64 - 1], np.uint64), 1).tolist() == [0, 0]
