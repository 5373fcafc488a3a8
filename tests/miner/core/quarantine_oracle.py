"""The test of pairs of identities by nested loops and exact fractions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from miner.core.config import QuarantineConfig
from miner.core.rng import Stream, draw_bits, stream_key
from miner.types import Candidates
from tests.miner.core.selection_oracles import World

Pair = tuple[int, int]


@dataclass(frozen=True)
class Evidence:
    """What speaks for one pair of identities being one."""

    num_rows: tuple[int, int]
    hits: Fraction
    num_copies: int
    num_mutual: int
    similarity: float

    @property
    def mixing(self) -> float:
        left, right = self.num_rows
        return float(self.hits / Fraction(2 * left * right, left + right - 1))


@dataclass(frozen=True)
class Inspection:
    """What nested loops find: all pairs tested, their p values, and those listed."""

    tested: dict[Pair, Evidence]
    p_values: dict[Pair, float]
    listed: set[Pair]
    confusion_rate: float


def inspect_by_hand(
    world: World,
    candidates: Candidates,
    config: QuarantineConfig,
    *,
    known: frozenset[Pair] = frozenset(),
    seed: int = 0,
) -> Inspection:
    """All pairs of identities that anchors point to, tested one by one."""
    pairs = set(known)
    looked_at: list[int] = []
    confused: list[int] = []
    for a, anchor in enumerate(candidates.anchor_ids_A.tolist()):
        if anchor not in _shown(world, world.identity(anchor), config, seed):
            continue
        looked_at.append(anchor)
        own = max(world.similarity(anchor, row) for row in world.others(anchor))
        found_K = zip(candidates.row_ids_AK[a].tolist(), candidates.similarities_AK[a], strict=True)
        nearer = [row for row, similarity in found_K if row >= 0 and similarity >= own]
        confused += [anchor] * bool(nearer)
        for row in nearer[:16]:
            pairs.add(_ordered(world.identity(anchor), world.identity(row)))
    limit = copy_limit(world, candidates, config)
    tested = {pair: _compare(world, pair, config, seed, limit) for pair in pairs}
    copied = {
        pair
        for pair, found in tested.items()
        if found.num_copies >= config.min_copied * min(found.num_rows)
    }
    without = {identity for pair in copied for identity in pair}
    num_confused = sum(world.identity(anchor) not in without for anchor in confused)
    num_others = sum(world.identity(anchor) not in without for anchor in looked_at)
    chance = num_confused / max(1, num_others)
    p_values = {
        pair: chernoff(float(found.hits), sum(found.num_rows), chance)
        for pair, found in tested.items()
    }
    credible = _few_false(p_values, config.max_false_share)
    listed = set()
    for pair, found in tested.items():
        mixed = abs(found.mixing - 1) <= config.mixing_tolerance and found.num_mutual > 0
        mixed = mixed and chance <= config.max_confusion
        if pair in copied or (mixed and pair in credible):
            listed.add(pair)
    return Inspection(tested, p_values, listed, len(confused) / max(1, len(looked_at)))


def copy_limit(world: World, candidates: Candidates, config: QuarantineConfig) -> np.float32:
    """From which similarity on two samples are copies."""
    vectors = [world.embeddings_ND[a].astype(float) for a in sorted(candidates.anchor_ids_A)]
    mean = sum(vectors) / len(vectors)
    apart = 1 - sum(x * x for x in mean.tolist())
    if apart < 1e-3:
        return np.float32(2)
    return np.float32(1 - max((1 - config.copy_similarity) * apart, 1e-6))


def chernoff(hits: float, num_rows: int, rate: float) -> float:
    """The bound on the chance of so many successes, or more, at this rate."""
    share, rate = hits / num_rows, min(max(rate, 1e-9), 1 - 1e-9)
    if share <= rate:
        return 1.0
    exponent = share * math.log(share / rate) if share > 0 else 0.0
    if share < 1:
        exponent += (1 - share) * math.log((1 - share) / (1 - rate))
    return math.exp(-num_rows * exponent)


def _ordered(left: int, right: int) -> Pair:
    return min(left, right), max(left, right)


def _shown(world: World, identity: int, config: QuarantineConfig, seed: int) -> list[int]:
    rows = np.flatnonzero(world.identities.identity_ids_N == identity)
    bits = draw_bits(stream_key(seed, 0, Stream.SUSPECT_ROWS), rows)
    drawn = sorted(zip(bits.tolist(), rows.tolist(), strict=True))
    return [row for _, row in drawn[: config.max_rows]]


def _compare(
    world: World, pair: Pair, config: QuarantineConfig, seed: int, limit: np.float32
) -> Evidence:
    left, right = (_shown(world, identity, config, seed) for identity in pair)
    rows = left + right
    nearest: dict[int, list[int]] = {}
    for row in rows:
        others = [other for other in rows if other != row]
        best = max(world.similarity(row, other) for other in others)
        nearest[row] = [other for other in others if world.similarity(row, other) == best]
    hits = Fraction(0)
    for row, found in nearest.items():
        num_across = sum(world.identity(other) != world.identity(row) for other in found)
        hits += Fraction(num_across, len(found))
    num_mutual = sum(any(x in nearest[y] and y in nearest[x] for y in right) for x in left)

    def copied(rows: list[int], others: list[int]) -> int:
        return sum(any(world.similarity(r, o) >= limit for o in others) for r in rows)

    across = [max(float(world.similarity(x, y)) for y in right) for x in left]
    across += [max(float(world.similarity(x, y)) for x in left) for y in right]
    return Evidence(
        num_rows=(len(left), len(right)),
        hits=hits,
        num_copies=min(copied(left, right), copied(right, left)),
        num_mutual=num_mutual,
        similarity=sum(across) / len(across),
    )


def _few_false(p_values: dict[Pair, float], max_false_share: float) -> set[Pair]:
    """Benjamini and Hochberg: the longest list with no more than this share expected false."""
    ascending = sorted(p_values, key=lambda pair: p_values[pair])
    for length in range(len(ascending), 0, -1):
        if p_values[ascending[length - 1]] * len(ascending) <= max_false_share * length:
            return set(ascending[:length])
    return set()
