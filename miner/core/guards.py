"""Rules that remove suspected false negatives from the candidates.

Pure NumPy. Shape legend: E = entries of a :class:`~miner.core.pool.Pool`, D = dimensions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from miner.core.pool import MiningTask, Pool
from miner.core.similarities import pair_similarities

__all__ = ["GUARD_NAMES", "apply_guards"]

GUARD_NAMES = (
    "same_identity",
    "quarantine",
    "max_similarity",
    "absolute_margin",
    "relative_margin",
    "duplicate_similarity",
)
"""Guards in the order in which they look at a candidate; the first that drops it counts it."""


def apply_guards(task: MiningTask, pool: Pool) -> tuple[Pool, dict[str, int]]:
    """The candidates that pass every configured guard, and how many each guard dropped.

    Guarantee: no candidate that is left has its anchor's identity (so none is the anchor) or one
    that counts as one with it, has
    ``s_an >= max_similarity``, ``s_an > s_ap - absolute_margin``, ``s_an > s_ap - relative_margin *
    |s_ap|`` (which lowers the threshold whatever the sign of ``s_ap``, unlike ``0.95 * s_ap``), or
    a similarity to the anchor's positive of ``duplicate_similarity`` or more. The ``s_ap`` of the
    margins is that of ``config.guard_positive``.

    Returns:
        The pool, in its order, and a count for each of :data:`GUARD_NAMES`.

    Cost: O(E) time, and O(E D) more for the duplicates.
    Source: ``max_similarity`` is what sentence-transformers' miner calls ``max_score``. Moreira et
        al., NV-Retriever (2024): its TopK-MarginPos with margin m is
        ``absolute_margin = m``, its TopK-PercPos with share p is ``relative_margin = 1 - p``.
    """
    dropped = {}
    for name in GUARD_NAMES:
        kept_E = _keep(name, task, pool)
        if kept_E is not None:
            dropped[name] = len(kept_E) - int(np.count_nonzero(kept_E))
            pool = pool if dropped[name] == 0 else pool.take(kept_E)
        else:
            dropped[name] = 0
    return pool, dropped


def _keep(name: str, task: MiningTask, pool: Pool) -> npt.NDArray[np.bool_] | None:
    """Which entries a guard keeps; None where it is not configured."""
    anchors = task.anchors
    if name == "same_identity":
        kept_E: npt.NDArray[np.bool_] = pool.identities_E != anchors.identities_A[pool.anchors_E]
        return kept_E
    if name == "quarantine":
        own_E = task.kin_I[anchors.identities_A[pool.anchors_E]]
        kin_E: npt.NDArray[np.bool_] = pool.kin_E != own_E
        return kin_E
    limit: float | None = getattr(task.config, name)
    if limit is None:
        return None
    s_ap_E = anchors.guard_similarities_ap_A[pool.anchors_E]
    match name:
        case "max_similarity":
            kept_E = pool.similarities_E < limit
        case "absolute_margin":
            kept_E = pool.similarities_E <= s_ap_E - limit
        case "relative_margin":
            kept_E = pool.similarities_E <= s_ap_E - limit * np.abs(s_ap_E)
        case _:
            positives_E = anchors.positives_A[pool.anchors_E]
            kept_E = pair_similarities(task.embeddings_ND, pool.rows_E, positives_E) < limit
    return kept_E
