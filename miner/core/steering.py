"""The target hardness of a curriculum: by the step, or steered by what the model has not learned.

Pure. Shape legend: N = rows of the catalog, D = dimensions, T = triplets.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miner.core.config import CurriculumConfig
from miner.core.similarities import pair_similarities
from miner.types import Groups, Tier

__all__ = ["next_target", "scheduled_target", "violating_fraction"]


def scheduled_target(config: CurriculumConfig, model_step: int) -> float:
    """The target at a step: from ``start`` to ``end`` in a straight line over ``steps``.

    Example:
        >>> config = CurriculumConfig(start=-0.2, end=0.0, steps=100)
        >>> [round(scheduled_target(config, step), 3) for step in (0, 50, 100, 900)]
        [-0.2, -0.1, 0.0, 0.0]
    """
    progress = min(1.0, model_step / config.steps)
    return config.start + (config.end - config.start) * progress


def next_target(config: CurriculumConfig, last_target: float | None, violating: float) -> float:
    """The next target: easier while too much of the last round is unlearned, else harder.

    A controller in the manner of Smart Mining's: the target moves by ``gain`` times what the
    fraction is below ``config.violating_fraction``, and stays between ``start`` and ``end``.

    Args:
        config: With ``violating_fraction`` set.
        last_target: Of the last round; None: ``start``.
        violating: From :func:`violating_fraction`.

    Source: Harwood et al., Smart mining for deep metric learning (2017), sec. 3.3.

    Example:
        >>> config = CurriculumConfig(start=-0.2, end=0.1, violating_fraction=0.5, gain=0.25)
        >>> [round(next_target(config, 0.0, share), 3) for share in (0.9, 0.5, 0.1, 0.0)]
        [-0.1, 0.0, 0.1, 0.1]
    """
    assert config.violating_fraction is not None
    base = config.start if last_target is None else last_target
    target = base + config.gain * (config.violating_fraction - violating)
    low, high = sorted((config.start, config.end))
    return min(max(target, low), high)


def violating_fraction(
    groups: Groups, embeddings_ND: npt.NDArray[np.float32], margin: float
) -> float | None:
    """Share of a round's mined triplets with ``s_an > s_ap - margin`` under other embeddings.

    Args:
        groups: A round over the rows of ``embeddings_ND``.
        embeddings_ND: [N, D] float32 L2-normalised, of now.
        margin: In similarity.

    Returns:
        None if the round has no mined triplets.

    Cost: O(T D) time.
    """
    mined_T = groups.tiers_T != Tier.RANDOM
    if not mined_T.any():
        return None
    anchors_T, positives_T, negatives_T = (rows_T[mined_T] for rows_T in groups.triplet_rows())
    s_ap_T = pair_similarities(embeddings_ND, anchors_T, positives_T)
    s_an_T = pair_similarities(embeddings_ND, anchors_T, negatives_T)
    return float((s_an_T > s_ap_T - np.float32(margin)).mean())
