"""The arms of the comparison: same encoder, optimizer, margin, steps and images per step.

An arm is a service (what it mines) and a loss (what the trainer makes of a batch).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ARMS", "Arm", "Pace", "service_config", "trainer_config"]

MARGIN = 0.2
LEARNING_RATE = 3e-3
# Random batches are groups too: 4 random identities, up to 4 samples each.
RANDOM_GROUPS = {"strategy": "random", "identities_per_group": 4, "samples_per_identity": 4}
# Loose triplets: anchor, positive and one random negative, 32 to a batch of 96 images.
RANDOM_TRIPLETS = {"strategy": "random", "identities_per_group": 2, "samples_per_identity": 1}
# Coalface: 3 of the 20 nearest identities; look-alikes beyond the ceiling are label noise.
MINED_GROUPS = {"max_similarity": 0.97}


@dataclass(frozen=True, slots=True)
class Arm:
    """One line of the table.

    Attributes:
        name: As the table shows it.
        key: Folder and run id.
        service: Arms with the same service name share one service.
        selection: The service's selection settings.
        loss: The trainer's loss mode.
    """

    name: str
    key: str
    service: str
    loss: str
    selection: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long an arm trains and how often Coalface mines.

    Attributes:
        steps: Optimizer steps of every arm.
        batch_rows: Images per step, over both trainer processes.
        warmup_steps: Steps on random groups before the first mined round.
        refresh_steps: Steps between announcements.
        max_staleness_steps: The feed waits rather than train on older rounds.
        seed: Of weights, order and draws.
    """

    steps: int = 500
    batch_rows: int = 96
    warmup_steps: int = 50
    refresh_steps: int = 100
    max_staleness_steps: int = 150
    seed: int = 0


ARMS = (
    Arm("random triplets", "random", "triplets", "mined", RANDOM_TRIPLETS),
    Arm("in-batch hard", "hard", "batches", "in_batch_hard", RANDOM_GROUPS),
    Arm("in-batch semi-hard", "semi-hard", "batches", "in_batch_semi_hard", RANDOM_GROUPS),
    Arm("Coalface", "coalface", "coalface", "in_batch_hard+in_batch_semi_hard", MINED_GROUPS),
)


def service_config(arm: Arm, out: Path, pace: Pace) -> dict[str, Any]:
    """The miner's configuration of an arm."""
    return {
        "state_dir": str(out / "services" / arm.service),
        "store_dir": str(out / "store"),
        "seed": pace.seed,
        "ray_address": "local",
        "dataset": {"uri": str(out / "glyphs" / "glyphs.parquet"), "filter": 'split == "train"'},
        "encoder": {"weights_prefixes": [str(out / "arms")]},
        "selection": {"groups_per_round": _groups(arm, pace)} | arm.selection,
        # Two workers, so that no core idles while the trainer waits, and room for the search.
        "workers": {"num_embed_workers": 2, "cpus_per_worker": 0.5},
        "refresh": {"warmup_steps": pace.warmup_steps},
        "rounds": {"keep_rounds": 1000},  # the report adds up what each of them cost
        "serving": {"stride_steps": 10},
    }


def _groups(arm: Arm, pace: Pace) -> int:
    """Enough that no arm goes through a round twice: a random one lasts for the whole training."""
    rows = {"triplets": 3}.get(arm.service, 16)
    steps = pace.refresh_steps * 3 if arm.service == "coalface" else pace.steps
    return math.ceil(1.25 * steps * pace.batch_rows / rows)


def trainer_config(arm: Arm, out: Path, pace: Pace, address: str) -> dict[str, Any]:
    """The trainer's configuration of an arm."""
    mines = arm.service == "coalface"
    return {
        "run_id": arm.key,
        "out": str(out / "arms" / arm.key),
        "steps": pace.steps,
        "batch_rows": pace.batch_rows,
        "seed": pace.seed,
        "miner": {
            "address": address,
            "stale": "wait" if mines else "serve",
            "max_staleness_steps": pace.max_staleness_steps if mines else 0,
        },
        "loss": {"mode": arm.loss, "margin": MARGIN},
        "optimizer": {"lr": LEARNING_RATE},
        "announce": {
            "every_steps": pace.refresh_steps if mines else 0,
            "after_step": pace.warmup_steps,
        },
    }
