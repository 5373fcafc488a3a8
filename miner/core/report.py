"""What a round's selection did, in figures for its manifest. Plain numbers only.

Shape legend: T = triplets, I = identities, N = rows, n = counters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from miner.core.config import SelectionConfig
from miner.core.guards import GUARD_NAMES
from miner.core.proposals import OUTSIDE_STRATEGY
from miner.types import Groups, IdentityTable, Tier

__all__ = ["Exposure", "SelectionReport", "describe_selection", "gini"]

_HARDNESS_EDGES = np.round(np.linspace(-1.0, 1.0, 41), 2)


@dataclass(frozen=True, slots=True)
class Exposure:
    """How unevenly things serve as mined negatives of a round: 0 uses count too.

    Attributes:
        min, median, max: Uses of one of them.
        gini: 0 if all are used alike, towards 1 if a few have all the use.
        unused: The share that is never used.
    """

    min: int
    median: float
    max: int
    gini: float
    unused: float


@dataclass(frozen=True, slots=True)
class SelectionReport:
    """Figures of one round; ``dataclasses.asdict`` of it is JSON. None where there is no embedding.

    Attributes:
        num_anchors: Anchors that the round was asked for.
        num_groups: Groups made; the other anchors had too few negatives.
        num_triplets: Triplets in the groups.
        tiers: Triplets by strategy, relaxed and random.
        dropped: Candidates removed, by guard and by ``outside_strategy``, each counted once.
        anchors_short: Anchors that found fewer negatives than a full group has.
        negatives_missing: How many negatives those lack together.
        identity_exposure: Use of identities as mined negatives, over all identities.
        sample_exposure: Use of rows as mined negatives, over all rows.
        hardness_edges: Edges of the bins of ``s_an - s_ap``; values beyond count in the outer ones.
        hardness_counts: Triplets per bin.
        mean_similarity_ap: Mean of ``s_ap`` over triplets.
        mean_similarity_an: Mean of ``s_an`` over triplets.
        violating_fraction: Share of triplets with ``s_an > s_ap - margin``.
    """

    num_anchors: int
    num_groups: int
    num_triplets: int
    tiers: list[int]
    dropped: dict[str, int]
    anchors_short: int
    negatives_missing: int
    identity_exposure: Exposure
    sample_exposure: Exposure
    hardness_edges: list[float]
    hardness_counts: list[int]
    mean_similarity_ap: float | None
    mean_similarity_an: float | None
    violating_fraction: float | None


def describe_selection(
    groups: Groups,
    missing_A: npt.NDArray[np.int64],
    dropped: Mapping[str, int],
    identities: IdentityTable,
    config: SelectionConfig,
) -> SelectionReport:
    """The figures of ``groups``.

    Args:
        groups: The round.
        missing_A: [A] int64, negatives that each anchor lacked in the end.
        dropped: Candidates removed, by name; those not named count as none.
        identities: The catalog's identities.
        config: For the margin.

    Cost: O(T + N log N) time.
    """
    num_triplets_G = np.diff(groups.triplet_offsets_G1)
    starts_T = np.repeat(groups.row_offsets_G1[:-1], num_triplets_G)
    negatives_T = groups.row_ids_R[starts_T + groups.negatives_T]
    negative_ids_T = identities.identity_ids_N[negatives_T]
    s_ap_T = groups.similarities_ap_T.astype(np.float64)
    s_an_T = groups.similarities_an_T.astype(np.float64)
    known = bool(np.isfinite(s_ap_T).all() and np.isfinite(s_an_T).all())
    hardness_T = np.clip(s_an_T - s_ap_T, -1.0, 1.0) if known else np.empty(0)
    return SelectionReport(
        num_anchors=len(missing_A),
        num_groups=groups.num_groups,
        num_triplets=groups.num_triplets,
        tiers=np.bincount(groups.tiers_T, minlength=len(Tier)).tolist(),
        dropped={name: int(dropped.get(name, 0)) for name in (*GUARD_NAMES, OUTSIDE_STRATEGY)},
        anchors_short=int(np.count_nonzero(missing_A)),
        negatives_missing=int(missing_A.sum()),
        identity_exposure=_expose(np.bincount(negative_ids_T, minlength=identities.num_identities)),
        sample_exposure=_expose(np.bincount(negatives_T, minlength=identities.num_rows)),
        hardness_edges=_HARDNESS_EDGES.tolist(),
        hardness_counts=np.histogram(hardness_T, _HARDNESS_EDGES)[0].tolist(),
        mean_similarity_ap=float(s_ap_T.mean()) if known else None,
        mean_similarity_an=float(s_an_T.mean()) if known else None,
        violating_fraction=float((s_an_T > s_ap_T - config.margin).mean()) if known else None,
    )


def gini(uses_n: npt.NDArray[np.int64]) -> float:
    """The Gini coefficient of some counts: half their mean absolute difference over their mean.

    Source: Gini (1912); the sorted form of Dorfman (1979).

    Example:
        >>> [round(gini(np.array(uses)), 3) for uses in ([2, 2, 2], [0, 0, 9], [0, 0])]
        [0.0, 0.667, 0.0]
    """
    total = int(uses_n.sum())
    if total == 0:
        return 0.0
    weights_n = 2 * np.arange(1, len(uses_n) + 1) - len(uses_n) - 1
    return float((weights_n * np.sort(uses_n)).sum() / (len(uses_n) * total))


def _expose(uses_n: npt.NDArray[np.int64]) -> Exposure:
    return Exposure(
        min=int(uses_n.min()),
        median=float(np.median(uses_n)),
        max=int(uses_n.max()),
        gini=gini(uses_n),
        unused=float((uses_n == 0).mean()),
    )
