"""Why anchors came out with too few negatives: the first rule that explains it.

Pure NumPy. Shape legend: A = anchors, E = entries of a pool.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from miner.core.guards import apply_guards
from miner.core.ledger import Ledger
from miner.core.parallel import cut, map_blocks
from miner.core.pool import MiningTask, Pool, read_pool
from miner.core.strategies import identity_groups, prefer

__all__ = ["IDENTITIES", "explain_shortfalls"]

IDENTITIES = "identities"
"""The reason of anchors that even random identities could not fill up."""

_BLOCK_ENTRIES = 1 << 17


def explain_shortfalls(
    task: MiningTask, ledger: Ledger, lacking_A: npt.NDArray[np.int64]
) -> dict[str, int]:
    """Count the anchors that came out short, each under the first reason that holds.

    - ``candidates``: fewer other identities among its candidates than it needs;
    - ``guards``: enough of these, but too few pass the guards;
    - ``strategy``: enough pass, but the strategy wants too few and underfill is ``drop``;
    - ``caps``: enough are wanted, but others that are harder got them;
    - ``identities``: what is missing was to be random, and too few other identities had use left.

    Args:
        task: The round's input.
        ledger: After the last tier.
        lacking_A: [A] int64, mined negatives that each anchor lacked before random ones were dealt.

    Returns:
        Counts by reason, without those of 0; together the anchors that are short.

    Cost: O(E log E) for the candidates of the short anchors.
    """
    is_short_A = ledger.count_missing() > 0
    mined_A = is_short_A & (lacking_A > 0) & (task.config.underfill != "random")
    short = np.flatnonzero(mined_A)
    needed_A = task.config.negatives_per_group - ledger.random_slots_A
    counts = Counter({IDENTITIES: int(np.count_nonzero(is_short_A & ~mined_A))})

    def work(part: slice) -> Counter[str]:
        anchors, reasons = short[part], Counter[str]()
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
            reasons[reason] = int(np.count_nonzero(too_few))
            unexplained &= ~too_few
        reasons["caps"] = int(np.count_nonzero(unexplained))
        return reasons

    block = max(1, _BLOCK_ENTRIES // max(1, task.candidates.row_ids_AK.shape[1]))
    for reasons in map_blocks(work, cut(len(short), block)):
        counts.update(reasons)
    return {reason: count for reason, count in counts.items() if count}


def _count_identities(pool: Pool, anchors: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Distinct identities in the pool of each of these anchors, which ascend."""
    order_E, position_E = identity_groups(pool)
    leads = pool.anchors_E[order_E[position_E == 0]]
    counts: npt.NDArray[np.int64] = np.bincount(
        np.searchsorted(anchors, leads), minlength=len(anchors)
    )
    return counts
