"""Rounds made up for chaos runs, and the digests by which their groups are known again.

Shape legend: R = rows, G = groups, T = triplets.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from typing import Any

import numpy as np

from miner.rounds import RoundDraft, RoundLog
from miner.types import Groups
from tests.chaos.records import SealedRound
from tests.trainer.feed.served_miner import NUM_IDENTITIES, NUM_ROWS, SAMPLES_EACH

__all__ = ["MAX_USES_PER_SAMPLE", "capped_groups", "group_digests", "make_draft", "sealed_round"]

MAX_USES_PER_SAMPLE = 12


def capped_groups(num_groups: int, seed: int) -> Groups:
    """Groups of 2 identities with 2 or 3 rows each; no row is a negative above the cap."""
    rng = np.random.default_rng(seed)
    uses_N = np.zeros(NUM_ROWS, np.int64)
    groups = []
    while len(groups) < num_groups:
        identities, num_each = rng.choice(NUM_IDENTITIES, 2, replace=False), int(rng.integers(2, 4))
        places = [rng.choice(SAMPLES_EACH, num_each, replace=False) for _ in identities]
        rows_R = (identities[:, None] * SAMPLES_EACH + np.stack(places)).ravel()
        negatives_T = np.arange(num_each, 2 * num_each, dtype=np.int32)
        if (uses_N[rows_R[negatives_T]] >= MAX_USES_PER_SAMPLE).any():
            continue
        uses_N[rows_R[negatives_T]] += 1
        groups.append(
            Groups(
                row_ids_R=rows_R.astype(np.int64),
                identity_ids_R=np.repeat(identities, num_each).astype(np.int32),
                row_offsets_G1=np.array([0, len(rows_R)], np.int64),
                anchors_T=np.zeros(num_each, np.int32),
                positives_T=np.ones(num_each, np.int32),
                negatives_T=negatives_T,
                similarities_ap_T=rng.random(num_each, np.float32),
                similarities_an_T=rng.random(num_each, np.float32),
                tiers_T=rng.integers(0, 3, num_each).astype(np.uint8),
                triplet_offsets_G1=np.array([0, num_each], np.int64),
            )
        )
    return Groups.concatenate(groups)


def make_draft(fingerprint: str, model_step: int) -> RoundDraft:
    """Of a round that counts as mined with the weights of a step."""
    return RoundDraft(
        model_step=model_step,
        weights_sha256="ab" * 32,
        dataset_fingerprint=fingerprint,
        strategy="semi_hard",  # of "random" rounds the feed would not compare the staleness
        config={"max_uses_per_sample": MAX_USES_PER_SAMPLE},
        seed=0,
        index={},
        recall=None,
        selection={},
        phases_s={},
        created_unix_s=time.time(),
    )


def group_digests(columns: Any, offsets_G1: Any, positions_T: tuple[Any, Any, Any]) -> list[str]:
    """Of each group a digest over its rows, identities, triplets, similarities and tiers.

    Args:
        columns: Has ``row_ids_R``, ``identity_ids_R``, ``similarities_*_T`` and ``tiers_T``.
        offsets_G1: Of the groups' rows.
        positions_T: Anchors, positives and negatives as positions among all R rows.
    """
    digests = []
    bounds_G1 = np.searchsorted(positions_T[0], offsets_G1)
    for begin, end, first, stop in zip(
        *(offsets_G1[:-1], offsets_G1[1:], bounds_G1[:-1], bounds_G1[1:]), strict=True
    ):
        parts = [
            columns.row_ids_R[begin:end].astype("<i8"),
            columns.identity_ids_R[begin:end].astype("<i4"),
            *((each_T[first:stop] - begin).astype("<i4") for each_T in positions_T),
            columns.similarities_ap_T[first:stop].astype("<f4"),
            columns.similarities_an_T[first:stop].astype("<f4"),
            columns.tiers_T[first:stop].astype("u1"),
        ]
        content = b"|".join(part.tobytes() for part in parts)
        digests.append(hashlib.sha256(content).hexdigest()[:16])
    return digests


def sealed_round(log: RoundLog, round_id: int) -> SealedRound:
    """What the log says of a round, read and checked whole.

    Raises:
        RoundLogError: It is damaged, or gone.
    """
    manifest, groups = log.manifest(round_id), log.read(round_id)
    shift_T = np.repeat(groups.row_offsets_G1[:-1], np.diff(groups.triplet_offsets_G1))
    positions_T = tuple(
        each_T + shift_T for each_T in (groups.anchors_T, groups.positives_T, groups.negatives_T)
    )
    cap = manifest.config["max_uses_per_sample"]
    assert isinstance(cap, int)
    return SealedRound(
        round_id=round_id,
        sha256=manifest.sha256,
        generation=manifest.generation,
        model_step=manifest.model_step,
        num_groups=manifest.num_groups,
        num_rows=manifest.num_rows,
        num_triplets=manifest.num_triplets,
        groups=Counter(group_digests(groups, groups.row_offsets_G1, positions_T)),
        max_uses_per_sample=cap,
    )
