"""Selection by nested loops, as a reader would do it by hand, and small worlds to try it on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
import numpy.typing as npt

from miner.core.config import SelectionConfig
from miner.core.rng import Stream, draw_bits, stream_key
from miner.types import Candidates, Groups, IdentityTable

Triplet = tuple[int, int, int]
"""Row ids of anchor and negative, and the tier."""


@dataclass(frozen=True)
class World:
    """A catalog with embeddings whose inner products are exact in float32, ties included."""

    identities: IdentityTable
    embeddings_ND: npt.NDArray[np.float32]
    listed: frozenset[tuple[int, int]] = frozenset()
    """Pairs of identities that count as one, and so does what they connect."""

    @cached_property
    def kin(self) -> list[int]:
        kin = list(range(self.identities.num_identities))
        for _ in kin:
            for left, right in self.listed:
                kin[left] = kin[right] = min(kin[left], kin[right])
        return kin

    @cached_property
    def similarities(self) -> list[list[np.float32]]:
        return [
            [np.float32(np.dot(left, right)) for right in self.embeddings_ND]
            for left in self.embeddings_ND
        ]

    @cached_property
    def identity_list(self) -> list[int]:
        ids: list[int] = self.identities.identity_ids_N.tolist()
        return ids

    def similarity(self, left: int, right: int) -> np.float32:
        return self.similarities[left][right]

    def identity(self, row: int) -> int:
        return self.identity_list[row]

    def one(self, row: int) -> int:
        """The lowest of the identities that count as one with the row's."""
        return self.kin[self.identity(row)]

    def others(self, row: int) -> list[int]:
        """The other rows of a row's identity."""
        rows = range(self.identities.num_rows)
        return [r for r in rows if r != row and self.identity(r) == self.identity(row)]

    def possible_anchors(self) -> list[int]:
        return [row for row in range(self.identities.num_rows) if self.others(row)]


def make_world(seed: int, sizes: list[int], *, dim: int = 3, num_copies: int = 0) -> World:
    """Rows of identities of the given sizes, shuffled; coordinates are quarters.

    So many identities are copies of the one before, as far as they have rows.
    """
    rng = np.random.default_rng(seed)
    ids_N = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    embeddings = rng.integers(-3, 4, (len(ids_N), dim)).astype(np.float32) / np.float32(4)
    table = IdentityTable.from_ids(ids_N, len(sizes))
    for identity in range(1, min(len(sizes), 1 + num_copies)):
        pairs = zip(table.rows_of(identity - 1), table.rows_of(identity), strict=False)
        for original, copy in pairs:
            embeddings[copy] = embeddings[original]
    return World(table, embeddings)


def circle(degrees: list[float], ids: list[int]) -> World:
    """Points of the unit circle, for cases that a reader checks by hand."""
    angles = np.radians(degrees)
    embeddings = np.stack((np.cos(angles), np.sin(angles)), 1).astype(np.float32)
    return World(IdentityTable.from_ids(np.array(ids, np.int32)), embeddings)


def search(world: World, anchors: list[int], num_candidates: int) -> Candidates:
    """The nearest rows of other identities, ties by row id, padded where there are too few."""
    rows_AK = np.full((len(anchors), num_candidates), -1, np.int64)
    similarities_AK = np.full((len(anchors), num_candidates), -np.inf, np.float32)
    for a, anchor in enumerate(anchors):
        others = [
            (-world.similarity(anchor, row), row)
            for row in range(world.identities.num_rows)
            if world.identity(row) != world.identity(anchor)
        ]
        for k, (negated, row) in enumerate(sorted(others)[:num_candidates]):
            rows_AK[a, k], similarities_AK[a, k] = row, -negated
    return Candidates(np.array(anchors, np.int64), rows_AK, similarities_AK)


def by_hand(world: World, found: dict[int, list[int]]) -> Candidates:
    """Candidates of chosen rows, put in order, nearest first."""
    width = max(len(rows) for rows in found.values())
    rows_AK = np.full((len(found), width), -1, np.int64)
    similarities_AK = np.full((len(found), width), -np.inf, np.float32)
    for a, (anchor, rows) in enumerate(found.items()):
        for k, (negated, row) in enumerate(sorted((-world.similarity(anchor, r), r) for r in rows)):
            rows_AK[a, k], similarities_AK[a, k] = row, -negated
    return Candidates(np.array(list(found), np.int64), rows_AK, similarities_AK)


def guard_similarity(world: World, rule: str, anchor: int, positive: int) -> np.float32:
    """The ``s_ap`` that margin guards look at."""
    similarities = [world.similarity(anchor, row) for row in world.others(anchor)]
    match rule:
        case "min":
            return min(similarities)
        case "max":
            return max(similarities)
        case "mean":
            return np.float32(sum(float(s) for s in similarities) / len(similarities))
    return world.similarity(anchor, positive)


def passes_guards(
    world: World,
    config: SelectionConfig,
    anchor: int,
    positive: int,
    row: int,
) -> bool:
    s_an = world.similarity(anchor, row)
    s_ap = guard_similarity(world, config.guard_positive, anchor, positive)
    if world.one(row) == world.one(anchor):
        return False
    if config.max_similarity is not None and s_an >= np.float32(config.max_similarity):
        return False
    if config.absolute_margin is not None and s_an > s_ap - np.float32(config.absolute_margin):
        return False
    relative = config.relative_margin
    if relative is not None and s_an > s_ap - np.float32(relative) * abs(s_ap):
        return False
    limit = config.duplicate_similarity
    return limit is None or bool(world.similarity(positive, row) < np.float32(limit))


@dataclass
class Market:
    """One-proposal-at-a-time deferred acceptance, in a random order of work."""

    lists: dict[int, list[int]]
    identity: Callable[[int], int]
    one: Callable[[int], int]
    hardness: Callable[[int, int], float]
    demand: Callable[[int], int]
    row_cap: Callable[[int], float]
    identity_cap: Callable[[int], float]

    def wanted(self, anchor: int, refused: set[tuple[int, int]]) -> list[int]:
        chosen: list[int] = []
        identities: list[int] = []
        demand = self.demand(anchor)
        for row in self.lists[anchor]:
            if len(chosen) >= demand:
                break
            if (anchor, row) not in refused and self.one(row) not in identities:
                chosen.append(row)
                identities.append(self.one(row))
        return chosen

    def run(self, seed: int) -> set[tuple[int, int]]:
        rng = random.Random(seed)
        held: set[tuple[int, int]] = set()
        refused: set[tuple[int, int]] = set()
        wanted = {anchor: self.wanted(anchor, refused) for anchor in self.lists}
        while True:
            waiting = [(a, row) for a, rows in wanted.items() for row in rows]
            waiting = [pair for pair in waiting if pair not in held]
            if not waiting:
                return held
            anchor, row = rng.choice(waiting)
            held.add((anchor, row))
            same_row = [pair for pair in held if pair[1] == row]
            self._refuse_beyond(self.row_cap(row), same_row, held, refused)
            ident = self.identity(row)
            same_identity = [pair for pair in held if self.identity(pair[1]) == ident]
            self._refuse_beyond(self.identity_cap(ident), same_identity, held, refused)
            for loser in {pair[0] for pair in [*same_row, *same_identity]}:
                wanted[loser] = self.wanted(loser, refused)

    def _refuse_beyond(
        self,
        cap: float,
        pairs: list[tuple[int, int]],
        held: set[tuple[int, int]],
        refused: set[tuple[int, int]],
    ) -> None:
        if len(pairs) > cap:
            easiest = max(pairs, key=lambda pair: (-self.hardness(*pair), pair))
            held.remove(easiest)
            refused.add(easiest)


def count_random_slots(config: SelectionConfig, anchor: int, *, seed: int, round_id: int) -> int:
    """How many of an anchor's negatives are not mined but drawn."""
    count = 0
    for slot in range(config.negatives_per_group):
        key = stream_key(seed, round_id, Stream.RANDOM_SLOT, slot)
        bits = int(draw_bits(key, np.array([anchor]))[0])
        count += (bits >> 11) / 2**53 < config.random_fraction
    return count


@dataclass
class Mined:
    """What nested loops mine for a round, before groups are dropped.

    Attributes:
        negatives: Of the tiers STRATEGY and RELAXED.
        demands: Negatives that each anchor is to get from its candidates.
        passed: Each anchor's candidates that pass the guards.
        bands: Those the strategy wants.
    """

    negatives: set[Triplet] = field(default_factory=set)
    demands: dict[int, int] = field(default_factory=dict)
    passed: dict[int, list[int]] = field(default_factory=dict)
    bands: dict[int, list[int]] = field(default_factory=dict)

    def count(self, anchor: int) -> int:
        return sum(a == anchor for a, _, _ in self.negatives)

    def short(self) -> list[int]:
        return [a for a, demand in self.demands.items() if self.count(a) < demand]


def explain_by_hand(
    world: World, candidates: Candidates, config: SelectionConfig, mined: Mined
) -> Counter[str]:
    """The first rule that explains each anchor without enough mined negatives."""
    reasons: Counter[str] = Counter()
    for a, anchor in enumerate(candidates.anchor_ids_A.tolist()):
        if anchor not in mined.short():
            continue
        rows = [row for row in candidates.row_ids_AK[a].tolist() if row >= 0]

        def too_few(rows: list[int], anchor: int = anchor) -> bool:
            others = {world.one(r) for r in rows if world.identity(r) != world.identity(anchor)}
            return len(others) < mined.demands[anchor]

        if too_few(rows):
            reasons["candidates"] += 1
        elif too_few(mined.passed[anchor]):
            reasons["guards"] += 1
        elif config.underfill == "drop" and too_few(mined.bands[anchor]):
            reasons["strategy"] += 1
        else:
            reasons["caps"] += 1
    return reasons


def same_groups(left: Groups, right: Groups) -> bool:
    """Whether two rounds are equal to the byte, order included."""
    return all(
        np.array_equal(getattr(left, f.name), getattr(right, f.name), equal_nan=True)
        for f in fields(Groups)
    )


def triplets_of(groups: Groups) -> list[tuple[int, int, int, int]]:
    """Row ids of anchor, positive and negative, and the tier, of every triplet."""
    found = []
    for g in range(groups.num_groups):
        begin = int(groups.row_offsets_G1[g])
        for t in range(int(groups.triplet_offsets_G1[g]), int(groups.triplet_offsets_G1[g + 1])):
            a, p, n = (
                int(groups.row_ids_R[begin + column[t]])
                for column in (groups.anchors_T, groups.positives_T, groups.negatives_T)
            )
            found.append((a, p, n, int(groups.tiers_T[t])))
    return found
