"""Why anchors came out with too few negatives: the first rule that explains it.

Pure NumPy. Shape legend: A = anchors, E = entries of a pool.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from miner.core.guards import apply_guards
from miner.core.ledger import Ledger
from miner.core.pool import MiningTask, Pool, read_pool
from miner.core.strategies import identity_groups, prefer

__all__ = ["explain_shortfalls"]

_BLOCK_ENTRIES = 1 << 19


def explain_shortfalls(task: MiningTask, ledger: Ledger) -> dict[str, int]:
    """Count the anchors that lack mined negatives, each under one reason.

    - ``candidates``: fewer other identities among its candidates than it needs;
    - ``guards``: enough of these, but too few pass the guards;
    - ``strategy``: enough pass, but the strategy wants too few and underfill is ``drop``;
    - ``caps``: enough are wanted, but others that are harder got them.

    Returns:
        Counts by reason, without those of 0; slots meant for random identities count as none.

    Cost: O(E log E) for the candidates of the short anchors.
    """
    short = np.flatnonzero(ledger.demands() > 0)
    needed_A = task.config.negatives_per_group - ledger.random_slots_A
    counts: Counter[str] = Counter()
    block = max(1, _BLOCK_ENTRIES // max(1, task.candidates.row_ids_AK.shape[1]))
    for begin in range(0, len(short), block):
        anchors = short[begin : begin + block]
        pool = read_pool(task, anchors)
        # As guards would: a candidate of the anchor's own identity is none.
        others = pool.take(pool.identities_E != task.anchors.identities_A[pool.anchors_E])
        passed, _ = apply_guards(task, pool)
        stages = {"candidates": others, "guards": passed}
        if task.config.underfill == "drop":
            stages["strategy"] = passed.take(prefer(task, passed).in_band_E)
        unexplained = np.ones(len(anchors), np.bool_)
        for reason, left in stages.items():
            too_few = unexplained & (_count_identities(left, anchors) < needed_A[anchors])
            counts[reason] += int(np.count_nonzero(too_few))
            unexplained &= ~too_few
        counts["caps"] += int(np.count_nonzero(unexplained))
    return {reason: count for reason, count in counts.items() if count}


def _count_identities(pool: Pool, anchors: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Distinct identities in the pool of each of these anchors, which ascend."""
    order_E, position_E = identity_groups(pool)
    leads = pool.anchors_E[order_E[position_E == 0]]
    counts: npt.NDArray[np.int64] = np.bincount(
        np.searchsorted(anchors, leads), minlength=len(anchors)
    )
    return counts
