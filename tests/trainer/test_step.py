"""What a learner draws besides its weights."""

import random
from pathlib import Path

import numpy as np
import torch

from tests.trainer.fake_run import config_of
from trainer.distributed import World
from trainer.step import Learner


def draws(tmp_path: Path, rank: int) -> list[float]:
    torch.seed()
    random.seed()
    np.random.seed()
    learner = Learner(config_of(tmp_path), World(rank, 1, torch.device("cpu")))
    assert learner.module is not None
    return [float(torch.rand(())), random.random(), float(np.random.random())]


def test_every_generator_that_augmentation_may_use_follows_seed_and_rank(tmp_path: Path) -> None:
    first, again, other = draws(tmp_path, 0), draws(tmp_path, 0), draws(tmp_path, 1)
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))
