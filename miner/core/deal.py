"""Random negatives: identities as evenly used as caps allow, then rows evenly within each.

Pure NumPy; needs no embeddings. Shape legend: A = anchors, M = negatives per anchor, N = rows,
I = identities, T = dealt negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.core.config import SelectionConfig
from miner.core.pool import Anchors
from miner.core.ragged import ragged_arange, rank_in_runs
from miner.core.rng import RoundSeed, Stream, draw_below, draw_bits
from miner.types import IdentityTable

__all__ = ["Dealer"]

_PATIENCE = 8
"""Fruitless random draws before anchors probe identities one by one."""

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Dealer:
    """Deals random negatives to anchors that are short of them.

    Attributes:
        identities: The catalog's identities.
        config: Size of a group, and caps.
        keys: Keys of the round's draws.
        anchors: All anchors of the round.
        kin_I: [I] int32, the lowest of the identities that count as one with this one.
    """

    identities: IdentityTable
    config: SelectionConfig
    keys: RoundSeed
    anchors: Anchors
    kin_I: npt.NDArray[np.int32]

    def deal(self, held_AM: npt.NDArray[np.int32], needs_A: I64, uses_N: I64) -> tuple[I64, I64]:
        """Give every anchor the random negatives that it needs, each of another identity (by kin).

        Guarantee: caps hold exactly, what is in use already included. An anchor gets fewer only
        if every identity with use left counts as one with its own or with one that it holds.
        Identities are dealt to
        those least used first, so their use differs by one, or by a few where caps or
        distinctness bind; which ones an anchor gets is otherwise uniformly random. Rows of an
        identity are used as evenly as can be. Depends on the set of anchors, not on their order.

        Args:
            held_AM: [A, M] int32 identities that anchors hold already, by the lowest of their kin;
                -1 where free.
            needs_A: [A] int64, negatives to give to each, no more than it has free.
            uses_N: [N] int64, how often each row is in use as a negative already.

        Returns:
            [T] int64 positions among the anchors, and [T] int64 row ids.

        Cost: O(A M log A + I) time for each of usually some tens of passes, O(A M + N) memory.
        """
        uses_I = np.bincount(self.identities.identity_ids_N, uses_N, self.identities.num_identities)
        anchors_T, identities_T = self._deal_identities(
            held_AM.copy(), needs_A.copy(), uses_I.astype(np.int64)
        )
        bits_T = draw_bits(self.keys.key(Stream.SPREAD), self.anchors.ids_A[anchors_T])
        order_T = np.lexsort((bits_T, identities_T))
        anchors_T, identities_T = anchors_T[order_T], identities_T[order_T]
        return anchors_T, self._spread_rows(identities_T, uses_N)

    def _deal_identities(
        self, held_AM: npt.NDArray[np.int32], needs_A: I64, uses_I: I64
    ) -> tuple[I64, I64]:
        """Fill ``held_AM`` up: anchors try random identities below a level of use that rises.

        When draws keep failing, anchors probe one identity after the other. A short anchor cannot
        take the kin of M identities at most, its own and those it holds: so once more than these,
        or all, have been probed in vain, the level is exhausted.
        """
        in_vain = _PATIENCE + held_AM.shape[1] * int(np.bincount(self.kin_I).max())
        limits_I = self._limits(len(needs_A))
        level = _level_below(uses_I, limits_I, int(needs_A.sum()))
        rise, attempt, idle = 1, 0, 0
        dealt: list[tuple[I64, I64]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        while needs_A.any():
            room_I = np.minimum(limits_I, level) - uses_I
            open_ids = np.flatnonzero(room_I > 0)
            if not len(open_ids) or idle > in_vain:
                if level >= limits_I.max():
                    break
                level, rise, idle = level + rise, 2 * rise, 0
                continue
            short = np.flatnonzero(needs_A)
            probe = max(0, idle - _PATIENCE)
            key = self.keys.key(Stream.DEAL, attempt - probe)  # probes go on from one draw
            bits = draw_bits(key, self.anchors.ids_A[short])
            tried = open_ids[(draw_below(bits, len(open_ids)) + probe) % len(open_ids)]
            own = self.anchors.identities_A[short]
            kin = self.kin_I[tried]
            fits = (kin != self.kin_I[own]) & ~(held_AM[short] == kin[:, None]).any(1)
            order = np.lexsort((bits[fits], tried[fits]))
            short, tried = short[fits][order], tried[fits][order]
            given = rank_in_runs(tried) < room_I[tried]
            short, tried = short[given], tried[given]
            held_AM[short, np.argmax(held_AM[short] < 0, axis=1)] = self.kin_I[tried]
            needs_A[short] -= 1
            np.add.at(uses_I, tried, 1)
            dealt.append((short, tried))
            attempt, idle = attempt + 1, 0 if len(short) else idle + 1
        anchors, identities = zip(*dealt, strict=True)
        return np.concatenate(anchors), np.concatenate(identities)

    def _limits(self, num_anchors: int) -> I64:
        """[I] most uses of each identity: by its cap, its rows' caps, and once per anchor."""
        per_row = self.config.max_uses_per_sample or num_anchors
        per_identity = self.config.max_uses_per_identity or num_anchors
        sizes_I = self.identities.sizes_I
        return np.minimum(sizes_I * per_row, min(per_identity, num_anchors))

    def _spread_rows(self, identities_T: I64, uses_N: I64) -> I64:
        """A row for each use of an identity, raising the least used rows first.

        The uses of each identity's rows fill up like water: rows in ascending order of use, equal
        ones in random order, are raised to a common level, and the first few one above it.
        """
        ids, counts = np.unique(identities_T, return_counts=True)
        sizes = self.identities.sizes_I[ids]
        position, owner = ragged_arange(sizes)
        rows = self.identities.rows_N[self.identities.offsets_I1[ids][owner] + position]
        bits = draw_bits(self.keys.key(Stream.SPREAD, 1), rows)
        rows = rows[np.lexsort((bits, uses_N[rows], owner))]
        uses = uses_N[rows]
        begins = np.cumsum(sizes) - sizes
        before = np.cumsum(uses) - uses
        before -= before[begins][owner]
        raised = position * uses - before <= counts[owner]
        num_raised = np.add.reduceat(raised, begins, dtype=np.int64)[owner]
        total = np.add.reduceat(np.where(raised, uses, 0), begins)[owner] + counts[owner]
        level, above = np.divmod(total, num_raised)
        added = np.where(raised, level + (position < above) - uses, 0)
        return np.repeat(rows, added)


def _level_below(uses_I: I64, limits_I: I64, needed: int) -> int:
    """The highest level of use up to which identities have room for no more than ``needed``."""
    low, high = 0, int(limits_I.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        room = np.maximum(np.minimum(limits_I, middle) - uses_I, 0).sum()
        low, high = (middle, high) if room <= needed else (low, middle - 1)
    return low
