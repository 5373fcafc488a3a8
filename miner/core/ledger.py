"""The negatives given out in a round, tier after tier, and what that leaves of needs and caps.

    empty -> give (strategy: floors, then caps) -> give (relaxed) -> give (random) -> close: groups

Pure NumPy; finds no negatives itself. Shape legend: N = rows of the catalog, A = anchors,
M = negatives per anchor, T = negatives given together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.core.assign import Caps
from miner.core.config import SelectionConfig
from miner.core.groups import Negatives, build_groups
from miner.core.pool import Anchors
from miner.core.ragged import rank_in_runs
from miner.core.report import Notes, SelectionReport, describe_selection
from miner.core.rng import RoundSeed, Stream, draw_bits
from miner.errors import SelectionError
from miner.types import Groups, IdentityTable

__all__ = ["Ledger", "Selection"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Selection:
    """The groups of a round, and what it took to find them."""

    groups: Groups
    report: SelectionReport


class Ledger:
    """What anchors hold so far.

    Attributes:
        held_AM: [A, M] int32, identities of the negatives of each anchor, by the lowest of their
            kin; -1 where one is missing.
        uses_N: [N] int64, how often each row is in use as a negative.
        random_slots_A: [A] int64, of the missing ones those that are to be random identities.
    """

    def __init__(
        self,
        anchors: Anchors,
        identities: IdentityTable,
        config: SelectionConfig,
        keys: RoundSeed,
        kin_I: npt.NDArray[np.int32],
    ) -> None:
        self.anchors, self.identities, self.config, self.keys = anchors, identities, config, keys
        self.kin_I = kin_I
        self.held_AM = np.full((len(anchors.ids_A), config.negatives_per_group), -1, np.int32)
        self.uses_N = np.zeros(identities.num_rows, np.int64)
        self.random_slots_A = _draw_random_slots(anchors, config, keys)
        self._given: list[Negatives] = []

    def count_missing(self) -> I64:
        """[A] int64, negatives that each anchor still lacks."""
        missing_A: I64 = np.count_nonzero(self.held_AM < 0, axis=1).astype(np.int64)
        return missing_A

    def demands(self) -> I64:
        """[A] int64, negatives that each anchor is still to get from its candidates."""
        return self.count_missing() - self.random_slots_A

    def caps(self) -> Caps:
        """What is left of the caps."""
        return self._left(self.config.max_uses_per_sample, self.config.max_uses_per_identity)

    def floors_and_caps(self) -> Iterator[Caps]:
        """One after the other what is left up to each floor, within the caps; then of the caps."""
        if self.config.min_uses_per_sample:
            yield self._left(self.config.min_uses_per_sample, self.config.max_uses_per_identity)
        if self.config.min_uses_per_identity:
            yield self._left(self.config.max_uses_per_sample, self.config.min_uses_per_identity)
        yield self.caps()

    def uses_of_identities(self) -> I64:
        """[I] int64, how often each identity is in use as a negative."""
        table = self.identities
        uses_I = np.bincount(table.identity_ids_N, self.uses_N, table.num_identities)
        return uses_I.astype(np.int64)

    def _left(self, per_row: int | None, per_identity: int | None) -> Caps:
        return Caps(
            None if per_row is None else np.maximum(per_row - self.uses_N, 0),
            None
            if per_identity is None
            else np.maximum(per_identity - self.uses_of_identities(), 0),
        )

    def give(self, negatives: Negatives) -> None:
        """Enter further negatives; those of one anchor have distinct, new identities."""
        if (np.diff(negatives.anchors_T) < 0).any():
            negatives = negatives.take(np.argsort(negatives.anchors_T, kind="stable"))
        num_held_T = self.held_AM.shape[1] - self.count_missing()[negatives.anchors_T]
        slots_T = num_held_T + rank_in_runs(negatives.anchors_T)
        identities_T = self.identities.identity_ids_N[negatives.rows_T]
        self.held_AM[negatives.anchors_T, slots_T] = self.kin_I[identities_T]
        np.add.at(self.uses_N, negatives.rows_T, 1)
        self._given.append(negatives)

    def close(self, notes: Notes) -> Selection:
        """The groups of all anchors that have enough negatives. The last thing a ledger does.

        Raises:
            SelectionError: If there are none; says which rule took the candidates.
        """
        missing_A = self.count_missing()
        allowed = 0 if self.config.underfill == "drop" else self.config.negatives_per_group - 1
        negatives = Negatives.concatenate(self._given)
        self._given.clear()
        is_enough_T = missing_A[negatives.anchors_T] <= allowed
        if not is_enough_T.all():
            negatives = negatives.take(is_enough_T)
        if not len(negatives.rows_T):
            raise SelectionError(_explain_nothing(self, notes))
        groups = build_groups(
            self.anchors, negatives, self.identities, self.config.samples_per_identity, self.keys
        )
        del negatives  # makes room
        report = describe_selection(groups, missing_A, self.identities, self.config, notes)
        return Selection(groups, report)


def _draw_random_slots(anchors: Anchors, config: SelectionConfig, keys: RoundSeed) -> I64:
    """[A] int64, each of an anchor's slots is random with probability ``random_fraction``."""
    slots_A = np.zeros(len(anchors.ids_A), np.int64)
    if config.random_fraction > 0:
        for slot in range(config.negatives_per_group):
            bits_A = draw_bits(keys.key(Stream.RANDOM_SLOT, slot), anchors.ids_A)
            slots_A += (bits_A >> np.uint64(11)) * 2.0**-53 < config.random_fraction
    return slots_A


_ADVICE = {
    "candidates": "search more candidates (num_candidates), or set underfill to random",
    "strategy": "raise num_candidates, widen the strategy (margin, window_start, window_stop) or "
    "set underfill to relax",
    "caps": "raise max_uses_per_sample or max_uses_per_identity, or choose fewer anchors "
    "(groups_per_round)",
    "identities": "raise max_uses_per_sample or max_uses_per_identity",
}
_GUARD_ADVICE = {
    "same_identity": "search for neighbours of other identities",
    "max_similarity": "raise max_similarity",
    "absolute_margin": "lower absolute_margin",
    "relative_margin": "lower relative_margin",
    "duplicate_similarity": "raise duplicate_similarity",
    "quarantine": "look at the identities under suspicion, or set quarantine.policy to report",
}


def _explain_nothing(ledger: Ledger, notes: Notes) -> str:
    """Which rule left a round without groups, and what to change."""
    config, num_short = ledger.config, int(np.count_nonzero(ledger.count_missing()))
    removed = {name: count for name, count in notes.dropped.items() if count}
    counts = ", ".join(f"{name} {count}" for name, count in removed.items()) or "none"
    return (
        f"no group could be made from {len(ledger.held_AM)} anchors with strategy "
        f"{config.strategy} and underfill {config.underfill}: {num_short} anchors have fewer than "
        f"{config.negatives_per_group} negatives, {int(ledger.uses_N.sum())} were found "
        f"(max_uses_per_sample={config.max_uses_per_sample}, "
        f"max_uses_per_identity={config.max_uses_per_identity}); candidates removed by rule: "
        f"{counts}; {_advise(ledger, notes, removed)}"
    )


def _advise(ledger: Ledger, notes: Notes, removed: Mapping[str, int]) -> str:
    """What to change so that most of the short anchors would get their negatives."""
    num_identities, per_group = len(np.unique(ledger.kin_I)), ledger.config.identities_per_group
    if ledger.identities.num_identities < 2:
        return "a negative needs a second identity; check the identity column"
    if num_identities < 2:
        return _GUARD_ADVICE["quarantine"]
    if num_identities < per_group:
        return (
            f"identities_per_group={per_group} is more than the {num_identities} different "
            "identities that there are: make groups smaller"
        )
    reason = max(notes.shortfalls, key=lambda name: notes.shortfalls[name], default="candidates")
    guards = [name for name in removed if name in _GUARD_ADVICE]
    if reason == "guards" and guards:
        return _GUARD_ADVICE[max(guards, key=lambda name: removed[name])]
    return _ADVICE.get(reason, _ADVICE["candidates"])
