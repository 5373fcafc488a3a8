"""Strategies, compositions and whole rounds by nested loops and plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from miner.core.config import SelectionConfig
from miner.core.rng import Stream, draw_bits, draw_gumbel, stream_key
from miner.types import Candidates
from tests.miner.core.selection_oracles import (
    Market,
    Mined,
    World,
    count_random_slots,
    passes_guards,
)

Lists = tuple[list[int], list[int]]
"""Rows that a strategy wants and the rest, each in order of preference."""


def preference_lists(
    world: World,
    config: SelectionConfig,
    pair: tuple[int, int],
    rows: list[int],
    *,
    keys: tuple[int, int] = (11, 4),
    target: float | None = None,
) -> Lists:
    """What the strategy wants of ``rows`` (nearest first) for an anchor and its positive.

    Args:
        world: Similarities.
        config: The strategy.
        pair: Anchor and positive.
        rows: What has passed the guards.
        keys: Seed and round of the draws.
        target: Of a curriculum; None for its start.
    """
    anchor, positive = pair
    s_ap = world.similarity(anchor, positive)
    hardness = {row: world.similarity(anchor, row) - s_ap for row in rows}

    def gumbel(row: int) -> float:
        key = stream_key(*keys, Stream.GUMBEL)
        return float(draw_gumbel(key, np.array([anchor]), np.array([row]))[0])

    match config.strategy:
        case "hardest":
            return rows, []
        case "semi_hard":
            margin = np.float32(config.margin)
            band = [row for row in rows if -margin < hardness[row] < 0]
            rest = [row for row in rows if row not in band]
            off = {r: hardness[r] if hardness[r] >= 0 else -margin - hardness[r] for r in rest}
            return band, sorted(rest, key=lambda row: off[row])
        case "distance_weighted":
            squared = {row: max(0.0, 2 - 2 * float(world.similarity(anchor, row))) for row in rows}
            band = [row for row in rows if squared[row] <= config.distance_limit**2]
            rest = [row for row in rows if row not in band]
            dim = world.embeddings_ND.shape[1]
            wanted = {
                r: gumbel(r) + log_inverse_density(squared[r], config.distance_cutoff, dim)
                for r in band
            }
            return sorted(band, key=lambda r: -wanted[r]), sorted(rest, key=lambda r: squared[r])
        case "simans":
            wanted = {
                r: gumbel(r) - config.simans_sharpness * (float(h) - config.simans_offset) ** 2
                for r, h in hardness.items()
            }
            return sorted(rows, key=lambda r: -wanted[r]), []
        case "curriculum":
            aim = np.float32(config.curriculum.start if target is None else target)
            off = {row: abs(h - aim) for row, h in hardness.items()}
            ordered = sorted(rows, key=lambda row: off[row])
            band = [row for row in ordered if off[row] <= np.float32(config.margin)]
            return band, [row for row in ordered if row not in band]
    return window_lists(world, config, anchor, rows, keys)


def log_inverse_density(squared: float, cutoff: float, dim: int) -> float:
    """Log of one over the density of distances between random points of a sphere."""
    distance = math.sqrt(min(max(squared, cutoff**2), 4 - 1e-9))
    return -(dim - 2) * math.log(distance) - (dim - 3) / 2 * math.log(1 - distance**2 / 4)


def window_lists(
    world: World, config: SelectionConfig, anchor: int, rows: list[int], keys: tuple[int, int]
) -> Lists:
    """Strategy ``rank_window``."""
    ranked: list[int] = []
    nearest: dict[int, int] = {}
    for row in rows:
        if world.one(row) not in ranked:
            ranked.append(world.one(row))
            nearest[world.one(row)] = row
    window = ranked[config.window_start : config.window_stop]
    key = stream_key(*keys, Stream.WINDOW)

    def draw(identity: int) -> int:
        row = np.array([nearest[identity]])
        return int(draw_bits(key, np.array([anchor]), row)[0] >> np.uint64(11))

    def distance_to_window(row: int) -> int:
        rank = ranked.index(world.one(row))
        before = config.window_start - rank
        return before if before > 0 else rank - (config.window_stop - 1)

    band = [
        row for identity in sorted(window, key=draw) for row in rows if world.one(row) == identity
    ]
    return band, sorted((row for row in rows if row not in band), key=distance_to_window)


def composed(world: World, config: SelectionConfig, rows: list[int]) -> list[int]:
    """A list in the order of ``config.composition``; ties keep the order of ``rows``."""
    if config.composition == "star" or not rows:
        return rows
    leads: list[int] = []
    for row in rows:
        if world.one(row) not in [world.one(lead) for lead in leads]:
            leads.append(row)
    left, beyond = leads[: config.composition_width], leads[config.composition_width :]
    order = [left.pop(0)]
    while left:
        # sums of sixteenths are exact in float64, so that ties are ties
        gains = [
            _gain(config.composition, [float(world.similarity(row, o)) for o in order])
            for row in left
        ]
        order.append(left.pop(gains.index(max(gains))))
    return [row for lead in [*order, *beyond] for row in rows if world.one(row) == world.one(lead)]


def _gain(composition: str, to_chosen: list[float]) -> float:
    match composition:
        case "chain":
            return to_chosen[-1]
        case "community":
            return sum(to_chosen)
    return -max(to_chosen)


def mined_negatives(
    world: World,
    candidates: Candidates,
    positives: dict[int, int],
    config: SelectionConfig,
    *,
    seed: int,
    round_id: int,
    target: float | None = None,
) -> Mined:
    """The negatives of a round that are not random."""
    mined, rest = Mined(), {}
    for a, anchor in enumerate(candidates.anchor_ids_A.tolist()):
        positive = positives[anchor]
        mined.passed[anchor] = [
            row
            for row in candidates.row_ids_AK[a].tolist()
            if row >= 0 and passes_guards(world, config, anchor, positive, row)
        ]
        mined.bands[anchor], rest[anchor] = preference_lists(
            world,
            config,
            (anchor, positive),
            mined.passed[anchor],
            keys=(seed, round_id),
            target=target,
        )
        slots = count_random_slots(config, anchor, seed=seed, round_id=round_id)
        mined.demands[anchor] = config.negatives_per_group - slots
    for tier, row_cap, identity_cap in _stages(config):
        lists = _without_held(world, mined, rest if tier else mined.bands)
        if tier == 0:
            lists = {anchor: composed(world, config, rows) for anchor, rows in lists.items()}
        market = _open_market(world, positives, mined, lists, (row_cap, identity_cap))
        mined.negatives |= {(anchor, row, tier) for anchor, row in market.run(seed)}
    return mined


def _stages(config: SelectionConfig) -> Iterator[tuple[int, float, float]]:
    """Tier, uses of a row and uses of an identity that each pass of assignment may bring it to."""
    row_cap = config.max_uses_per_sample or math.inf
    identity_cap = config.max_uses_per_identity or math.inf
    if config.min_uses_per_sample:
        yield 0, config.min_uses_per_sample, identity_cap
    if config.min_uses_per_identity:
        yield 0, row_cap, config.min_uses_per_identity
    yield 0, row_cap, identity_cap
    if config.underfill != "drop":
        yield 1, row_cap, identity_cap


def _without_held(world: World, mined: Mined, lists: dict[int, list[int]]) -> dict[int, list[int]]:
    held: dict[int, list[int]] = {anchor: [] for anchor in lists}
    for anchor, row, _ in mined.negatives:
        held[anchor].append(world.one(row))
    return {
        anchor: [row for row in rows if world.one(row) not in held[anchor]]
        for anchor, rows in lists.items()
    }


def _open_market(
    world: World,
    positives: dict[int, int],
    mined: Mined,
    lists: dict[int, list[int]],
    caps: tuple[float, float],
) -> Market:
    """What earlier passes leave of needs and caps."""
    left = {anchor: demand - mined.count(anchor) for anchor, demand in mined.demands.items()}
    taken = [n for _, n, _ in mined.negatives]
    taken_ids = [world.identity(n) for n in taken]
    return Market(
        lists=lists,
        identity=world.identity,
        one=world.one,
        hardness=lambda a, n: float(world.similarity(a, n) - world.similarity(a, positives[a])),
        demand=lambda a: left[a],
        row_cap=lambda n: max(0, caps[0] - taken.count(n)),
        identity_cap=lambda i: max(0, caps[1] - taken_ids.count(i)),
    )
