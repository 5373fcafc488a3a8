"""The arms of the composition study: what a group is made of, and the loss over it."""

from __future__ import annotations

from typing import Any

from tests.bench.composition_train import WARMUP, Arm

BOTH = "in_batch_hard+in_batch_semi_hard"
LOSSES = {
    "hard": "in_batch_hard",
    "semi-hard": "in_batch_semi_hard",
    "hard+semi-hard": BOTH,
    "hard/3+semi-hard": "hard_third",
    "2 hard+semi-hard": "hard_double",
    "hard+semi-hard, brake 0.90": "braked_at_90",
    "hard+semi-hard, brake 0.95": "braked_at_95",
    "mined+semi-hard": "mined+in_batch_semi_hard",
    "steered": "steered",
    "soft triplets": "soft_triplets",
    "soft triplets 0.05": "soft_triplets_05",
    "multi-similarity": "multi_similarity",
    "circle": "circle",
    "sup-con": "sup_con",
    "sct": "sct",
}
BASELINES = ("random, hard", "random, semi-hard")
# Star: the anchor and M random ones of the 20 nearest identities, 4 identities of 4 samples.
STAR: dict[str, Any] = {"strategy": "rank_window", "window_start": 0, "window_stop": 20}
NEAREST_3 = STAR | {"window_stop": 3}
COMPOSITIONS: dict[str, dict[str, Any]] = {
    "star, window 0-3": NEAREST_3,
    "star, window 0-5": STAR | {"window_stop": 5},
    "star, window 0-60": STAR | {"window_stop": 60},
    "star, window 20-60": STAR | {"window_start": 20, "window_stop": 60},
    "chain, window 0-20": STAR | {"composition": "chain"},
    "community, window 0-20": STAR | {"composition": "community"},
    "diverse, window 0-20": STAR | {"composition": "diverse"},
    "star, window 0-20, 1/3 random": STAR | {"random_fraction": 0.33},
    "star, window 0-20, 2/3 random": STAR | {"random_fraction": 0.67},
    "star, window 0-20, 2 identities": STAR | {"identities_per_group": 2},
    "star, window 0-20, 8 identities": STAR | {"identities_per_group": 8},
    "star, window 0-20, 8 identities of 2": STAR
    | {"identities_per_group": 8, "samples_per_identity": 2},
    "star, window 0-20, 12 identities": STAR | {"identities_per_group": 12},
    "chain, window 0-20, 8 identities": STAR | {"identities_per_group": 8, "composition": "chain"},
    "community, window 0-20, 8 identities": STAR
    | {"identities_per_group": 8, "composition": "community"},
    "simans": {"strategy": "simans"},
    "distance weighted": {"strategy": "distance_weighted"},
}
TRIPLETS = {"identities_per_group": 2, "samples_per_identity": 1}

ARMS = (
    # In-batch baselines, and other losses over the same random groups: is it the mining?
    *(Arm(f"random, {name}", loss, WARMUP) for name, loss in LOSSES.items() if "mined" not in loss),
    Arm("loose semi-hard triplets, mined", "mined", TRIPLETS | {"strategy": "semi_hard"}),
    *(Arm(f"star, window 0-20, {name}", loss, STAR) for name, loss in LOSSES.items()),
    Arm("star, window 0-20, hard+semi-hard, warm-up 150", BOTH, STAR, warmup_steps=150),
    *(
        Arm(f"{group}, {name}", loss, COMPOSITIONS[group])
        for group in ("star, window 0-20, 8 identities", "star, window 0-5")
        for name, loss in LOSSES.items()
        if "brake" in name
    ),
    *(Arm(f"{name}, hard+semi-hard", BOTH, chosen) for name, chosen in COMPOSITIONS.items()),
)
