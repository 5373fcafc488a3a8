"""What a new round inherits from the rounds in a log; for the service and for offline mining."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from miner.core import History, SelectionConfig
from miner.rounds import RoundLog, RoundManifest

__all__ = ["read_history"]


def read_history(
    log: RoundLog, config: SelectionConfig, *, dataset_fingerprint: str, model_step: int
) -> History:
    """Read as much of the log as ``config`` asks for.

    Args:
        log: Where the next round will be sealed.
        config: Of the next round: how many earlier rounds it looks back on, and whether a
            curriculum is steered.
        dataset_fingerprint: Rounds of other datasets are passed over.
        model_step: Of the weights that the next round is mined with.

    Raises:
        DamagedRoundError: If a round that is needed is damaged.

    Cost: the groups of ``config.momentum_rounds`` rounds, or of one; else manifests only.
    """
    steered = config.strategy == "curriculum" and config.curriculum.violating_fraction is not None
    num_rounds = max(config.momentum_rounds, int(steered))
    mined = list(_newest_mined(log, dataset_fingerprint, max(num_rounds, 1)))
    if not mined:
        return History(model_step=model_step)
    report: dict[str, Any] = dict(mined[0].selection)
    pairs = report.get("quarantine", {}).get("pairs", [])
    return History(
        model_step=model_step,
        earlier=tuple(log.read(manifest.round_id) for manifest in mined[:num_rounds]),
        target_hardness=report.get("target_hardness"),
        suspects=tuple((left, right) for left, right in (pair["identities"] for pair in pairs)),
    )


def _newest_mined(log: RoundLog, fingerprint: str, limit: int) -> Iterator[RoundManifest]:
    """Up to ``limit`` rounds of this dataset that were mined from embeddings, newest first."""
    found = 0
    for round_id in reversed(log.sealed_ids()):
        manifest = log.manifest(round_id)
        if manifest.weights_sha256 and manifest.dataset_fingerprint == fingerprint:
            yield manifest
            found += 1
            if found == limit:
                return
