"""Selection by nested loops, as a reader would do it by hand, and small worlds to try it on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, fields

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

    def similarity(self, left: int, right: int) -> np.float32:
        return np.float32(np.dot(self.embeddings_ND[left], self.embeddings_ND[right]))

    def identity(self, row: int) -> int:
        return int(self.identities.identity_ids_N[row])

    def possible_anchors(self) -> list[int]:
        sizes = self.identities.sizes_I
        return [row for row in range(self.identities.num_rows) if sizes[self.identity(row)] >= 2]


def make_world(seed: int, sizes: list[int], *, dim: int = 3) -> World:
    """Rows of identities of the given sizes, shuffled; coordinates are quarters."""
    rng = np.random.default_rng(seed)
    ids_N = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    embeddings = rng.integers(-3, 4, (len(ids_N), dim)).astype(np.float32) / np.float32(4)
    return World(IdentityTable.from_ids(ids_N, len(sizes)), embeddings)


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


def passes_guards(
    world: World, config: SelectionConfig, anchor: int, positive: int, row: int
) -> bool:
    s_ap, s_an = world.similarity(anchor, positive), world.similarity(anchor, row)
    if world.identity(row) == world.identity(anchor):
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


def preference_lists(
    world: World, config: SelectionConfig, pair: tuple[int, int], rows: list[int], key: int
) -> tuple[list[int], list[int]]:
    """What the strategy wants of ``rows`` (nearest first), and the rest, each in order."""
    anchor, positive = pair
    hardness = {
        row: world.similarity(anchor, row) - world.similarity(anchor, positive) for row in rows
    }
    if config.strategy == "hardest":
        return rows, []
    if config.strategy == "semi_hard":
        margin = np.float32(config.margin)
        band = [row for row in rows if -margin < hardness[row] < 0]
        rest = [row for row in rows if row not in band]
        distance = {r: hardness[r] if hardness[r] >= 0 else -margin - hardness[r] for r in rest}
        return band, sorted(rest, key=lambda row: distance[row])
    ranked: list[int] = []
    nearest: dict[int, int] = {}
    for row in rows:
        if world.identity(row) not in ranked:
            ranked.append(world.identity(row))
            nearest[world.identity(row)] = row
    window = ranked[config.window_start : config.window_stop]

    def draw(identity: int) -> int:
        row = np.array([nearest[identity]])
        return int(draw_bits(key, np.array([anchor]), row)[0] >> np.uint64(11))

    def distance_to_window(row: int) -> int:
        rank = ranked.index(world.identity(row))
        before = config.window_start - rank
        return before if before > 0 else rank - (config.window_stop - 1)

    band = [
        row
        for identity in sorted(window, key=draw)
        for row in rows
        if world.identity(row) == identity
    ]
    return band, sorted((row for row in rows if row not in band), key=distance_to_window)


@dataclass
class Market:
    """One-proposal-at-a-time deferred acceptance, in a random order of work."""

    lists: dict[int, list[int]]
    identity: Callable[[int], int]
    hardness: Callable[[int, int], float]
    demand: Callable[[int], int]
    row_cap: Callable[[int], float]
    identity_cap: Callable[[int], float]

    def wanted(self, anchor: int, refused: set[tuple[int, int]]) -> list[int]:
        chosen: list[int] = []
        for row in self.lists[anchor]:
            if (anchor, row) in refused or len(chosen) >= self.demand(anchor):
                continue
            if self.identity(row) not in [self.identity(other) for other in chosen]:
                chosen.append(row)
        return chosen

    def run(self, seed: int) -> set[tuple[int, int]]:
        rng = random.Random(seed)
        held: set[tuple[int, int]] = set()
        refused: set[tuple[int, int]] = set()
        while True:
            waiting = [
                (anchor, row)
                for anchor in self.lists
                for row in self.wanted(anchor, refused)
                if (anchor, row) not in held
            ]
            if not waiting:
                return held
            anchor, row = rng.choice(waiting)
            held.add((anchor, row))
            same_row = [pair for pair in held if pair[1] == row]
            self._refuse_beyond(self.row_cap(row), same_row, held, refused)
            ident = self.identity(row)
            same_identity = [pair for pair in held if self.identity(pair[1]) == ident]
            self._refuse_beyond(self.identity_cap(ident), same_identity, held, refused)

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


def mined_negatives(
    world: World,
    candidates: Candidates,
    positives: dict[int, int],
    config: SelectionConfig,
    *,
    seed: int,
    round_id: int,
) -> set[Triplet]:
    """(anchor, negative, tier) of the tiers STRATEGY and RELAXED, before groups are dropped."""
    key = stream_key(seed, round_id, Stream.WINDOW)
    lists: list[dict[int, list[int]]] = [{}, {}]
    for anchor, rows in zip(
        candidates.anchor_ids_A.tolist(), candidates.row_ids_AK.tolist(), strict=True
    ):
        passed = [
            row
            for row in rows
            if row >= 0 and passes_guards(world, config, anchor, positives[anchor], row)
        ]
        lists[0][anchor], lists[1][anchor] = preference_lists(
            world, config, (anchor, positives[anchor]), passed, key
        )
    found: set[Triplet] = set()
    for tier in (0, 1) if config.underfill != "drop" else (0,):
        found |= {
            (anchor, row, tier)
            for anchor, row in _open_market(world, positives, config, lists[tier], found).run(seed)
        }
    return found


def _open_market(
    world: World,
    positives: dict[int, int],
    config: SelectionConfig,
    lists: dict[int, list[int]],
    found: set[Triplet],
) -> Market:
    """What earlier tiers leave of needs and caps."""
    held = {anchor: [n for a, n, _ in found if a == anchor] for anchor in lists}
    taken = [n for _, n, _ in found]
    taken_ids = [world.identity(n) for n in taken]
    return Market(
        lists={
            anchor: [
                row
                for row in rows
                if world.identity(row) not in [world.identity(n) for n in held[anchor]]
            ]
            for anchor, rows in lists.items()
        },
        identity=world.identity,
        hardness=lambda a, n: float(world.similarity(a, n) - world.similarity(a, positives[a])),
        demand=lambda a: config.negatives_per_group - len(held[a]),
        row_cap=lambda n: (config.max_uses_per_sample or 10**9) - taken.count(n),
        identity_cap=lambda i: (config.max_uses_per_identity or 10**9) - taken_ids.count(i),
    )


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
