"""Who gets which negative: deferred acceptance between anchors and capped negatives.

Pure NumPy; knows neither strategies nor embeddings, only ordered lists, hardness and caps.
Shape legend: A = anchors, P = proposals, N = rows of the catalog, I = identities.

    an anchor proposes down its list, to one row per identity, until it holds all it needs
        -> a row keeps its hardest proposals up to its cap, then its identity up to its own
            -> refused anchors propose further; what is held may still be lost to a harder one
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.core.ordering import descending_bits, stable_order
from miner.core.parallel import cut
from miner.core.proposals import Proposals
from miner.core.ragged import rank_in_runs

__all__ = ["Caps", "assign"]

_HALF = np.uint64(32)
_NO_BOUND = np.uint64(2**64 - 1)
_WINDOW = 8
"""List entries looked at together when anchors move down their lists."""
_BLOCK = 1 << 16
"""Anchors that move on at a time: bounds their windows to some 10 MB."""

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Caps:
    """How much each row and identity can still be used as a negative; None is without bound.

    Attributes:
        rows_N: [N] int64, >= 0.
        identities_I: [I] int64, >= 0.
    """

    rows_N: I64 | None
    identities_I: I64 | None


def assign(proposals: Proposals, demands_A: I64, similarities_ap_A: F32, caps: Caps) -> I64:
    """Match anchors with negatives.

    Guarantee: the anchor-optimal stable matching, which is unique. An anchor holds at most
    ``demands_A`` proposals, of distinct identities; rows and identities are within their caps; and
    there is no proposal that its anchor prefers to what it holds (or has room for) and that its row
    and identity would take in place of an easier one (or have room for). Rows and identities prefer
    the highest ``s_an - s_ap``, then the lowest anchor. No order of work changes the result.

    Args:
        proposals: Ordered list of each anchor. Anchors stand in ascending order of their row ids.
        demands_A: [A] int64, most that an anchor may hold.
        similarities_ap_A: [A] float32, similarity of each anchor to its positive.
        caps: What negatives can take.

    Returns:
        Ascending int64 positions of the accepted proposals.

    Cost: each proposal is looked at a bounded number of times; in each of usually a hundred passes
        the proposals to those identities that got a promising new one are sorted.
    Source: Gale and Shapley (1962); for many-to-many matching with such (substitutable, laminar)
        preferences Hatfield and Kominers, Contract design and stability (2017).
    """
    anchors = _ProposingAnchors(proposals, demands_A)
    new = anchors.advance(np.flatnonzero(demands_A))
    if caps.rows_N is None and caps.identities_I is None:
        return np.sort(new.entries)
    negatives = _CappedNegatives(proposals, similarities_ap_A, caps, int(demands_A.sum()))
    while len(new.entries):
        new = anchors.go_on(negatives.consider(new))
    return np.sort(negatives.held)


@dataclass(frozen=True, slots=True)
class _Offers:
    """Some proposals, in any order: positions in the lists, and whose lists they are."""

    entries: I64
    anchors: I64

    def take(self, chosen: npt.NDArray[np.bool_] | I64) -> _Offers:
        return _Offers(self.entries[chosen], self.anchors[chosen])

    def __add__(self, other: _Offers) -> _Offers:
        return _Offers(
            np.concatenate((self.entries, other.entries)),
            np.concatenate((self.anchors, other.anchors)),
        )


class _ProposingAnchors:
    """Where each anchor stands in its list.

    An entry is open if it has not been refused and all earlier entries of its list to the same
    identity have. An anchor holds the first open entries of its list, as many as it needs; all of
    them lie before its frontier.
    """

    def __init__(self, proposals: Proposals, demands_A: I64) -> None:
        self._offsets_A1, self._steps_P = proposals.offsets_A1, proposals.steps_P
        self._open_P = proposals.leads_P.copy()
        self._frontier_A = proposals.offsets_A1[:-1].copy()
        self._needs_A = demands_A.astype(np.int64)

    def advance(self, anchors: I64) -> _Offers:
        """The next open entries of these anchors, until their needs are met or their lists end."""
        parts = [self._advance(anchors[part]) for part in cut(len(anchors), _BLOCK)]
        return _Offers(
            np.concatenate([part.entries for part in parts] or [np.empty(0, np.int64)]),
            np.concatenate([part.anchors for part in parts] or [np.empty(0, np.int64)]),
        )

    def _advance(self, anchors: I64) -> _Offers:
        found = _Offers(np.empty(0, np.int64), np.empty(0, np.int64))
        ends = self._offsets_A1[anchors + 1]
        while True:
            going = (self._needs_A[anchors] > 0) & (self._frontier_A[anchors] < ends)
            anchors, ends = anchors[going], ends[going]
            if not len(anchors):
                return found
            window = self._frontier_A[anchors][:, None] + np.arange(_WINDOW)
            inside = window < ends[:, None]
            is_open = inside & self._open_P[np.where(inside, window, 0)]
            count = np.cumsum(is_open, axis=1)
            taken = is_open & (count <= self._needs_A[anchors][:, None])
            num_taken = taken.sum(1)
            found += _Offers(window[taken], np.repeat(anchors, num_taken))
            self._needs_A[anchors] -= num_taken
            after_last = _WINDOW - np.argmax(taken[:, ::-1], axis=1)
            met = self._needs_A[anchors] == 0
            self._frontier_A[anchors] += np.where(met, after_last, _WINDOW)

    def go_on(self, refused: _Offers) -> _Offers:
        """What the anchors of the refused entries propose to instead."""
        self._open_P[refused.entries] = False
        np.add.at(self._needs_A, refused.anchors, 1)
        steps = self._steps_P[refused.entries]
        follows = refused.take(steps > 0)
        opened = _Offers(follows.entries + steps[steps > 0], follows.anchors)
        self._open_P[opened.entries] = True
        # Open entries before the frontier come before all others that the anchor may turn to.
        passed = opened.take(opened.entries < self._frontier_A[opened.anchors])
        np.subtract.at(self._needs_A, passed.anchors, 1)
        again_A = np.zeros(len(self._needs_A), np.bool_)
        again_A[refused.anchors] = True
        return passed + self.advance(np.flatnonzero(again_A))


class _CappedNegatives:
    """What rows and identities hold.

    A proposal that was held and is refused stays refused: what displaced it is harder, and makes
    way only for something harder still. So what is easier than all that a full row or identity
    ever held need not be compared with it again.
    """

    def __init__(
        self, proposals: Proposals, similarities_ap_A: F32, caps: Caps, most_held: int
    ) -> None:
        self._proposals, self._similarities_ap_A, self._caps = proposals, similarities_ap_A, caps
        self._num_held = 0
        self._held = _Offers(np.empty(most_held, np.int64), np.empty(most_held, np.int64))
        self._held_keys: U64 = np.empty(most_held, np.uint64)
        num_identities = int(proposals.identities_P.max(initial=-1)) + 1
        num_rows = 0 if caps.rows_N is None else len(caps.rows_N)
        self._touched_I = np.zeros(num_identities, np.bool_)
        self._bounds_I = np.full(num_identities, _NO_BOUND)
        self._bounds_N = np.full(num_rows, _NO_BOUND)

    @property
    def held(self) -> I64:
        """Positions of the proposals that are held, in any order."""
        return self._held.entries[: self._num_held]

    def consider(self, new: _Offers) -> _Offers:
        """Hold these too as far as caps allow; returns all that are now refused."""
        keys = self._hardest_first(new)
        hopeless = keys > self._bounds_I[keys >> _HALF]
        if self._caps.rows_N is not None:
            hopeless |= keys > self._bounds_N[self._proposals.rows_P[new.entries]]
        refused, new, keys = new.take(hopeless), new.take(~hopeless), keys[~hopeless]
        return refused + self._compare(new, keys) if len(keys) else refused

    def _compare(self, new: _Offers, new_keys: U64) -> _Offers:
        """Put new entries among what their identities hold; returns what is now refused."""
        touched = new_keys >> _HALF
        self._touched_I[touched] = True
        identities = self._held_keys[: self._num_held] >> _HALF
        contested = np.flatnonzero(self._touched_I[identities])
        self._touched_I[touched] = False
        tried = self._held.take(contested) + new
        tried_keys = np.concatenate((self._held_keys[contested], new_keys))
        order = np.argsort(tried_keys)
        if (np.diff(tried_keys[order]) == 0).any():  # equally hard: by anchor
            order = np.lexsort((tried.entries, tried_keys))
        tried, tried_keys = tried.take(order), tried_keys[order]
        kept = self._choose(tried.entries, tried_keys)
        # Rows and identities that are offered more never hold fewer.
        num_held = self._num_held + int(np.count_nonzero(kept)) - len(contested)
        places = np.concatenate((contested, np.arange(self._num_held, num_held)))
        self._num_held = num_held
        self._held.entries[places] = tried.entries[kept]
        self._held.anchors[places] = tried.anchors[kept]
        self._held_keys[places] = tried_keys[kept]
        return tried.take(~kept)

    def _choose(self, entries: I64, keys: U64) -> npt.NDArray[np.bool_]:
        """Which of all entries to some identities are kept; hardest first within an identity."""
        kept = np.ones(len(entries), np.bool_)
        if self._caps.rows_N is not None:
            rows = self._proposals.rows_P[entries].astype(np.int64)
            by_row = stable_order(rows)
            room = self._caps.rows_N[rows[by_row]] - rank_in_runs(rows[by_row])
            kept[by_row] = room > 0
            last = by_row[room == 1]
            self._bounds_N[rows[last]] = keys[last]
        if self._caps.identities_I is not None:
            left = np.flatnonzero(kept)
            identities = self._proposals.identities_P[entries[left]]
            room = self._caps.identities_I[identities] - rank_in_runs(identities)
            kept[left] = room > 0
            last = left[room == 1]
            self._bounds_I[self._proposals.identities_P[entries[last]]] = keys[last]
        return kept

    def _hardest_first(self, offers: _Offers) -> U64:
        """Sort keys: by identity, and within it by descending hardness."""
        s_an = self._proposals.similarities_P[offers.entries]
        hardness = s_an - self._similarities_ap_A[offers.anchors]
        identities = self._proposals.identities_P[offers.entries].astype(np.uint64)
        keys: U64 = identities << _HALF | descending_bits(hardness)
        return keys
