"""The reference trainer under Ray Train, configured as `coalface-trainer train` is.

    python ray_train.py --config trainer.yaml --workers 4 --gpu

Needs `ray[train]` and the extra `trainer` on every node, and an `out` that all of them share. It
joins the cluster of RAY_ADDRESS, which `ray job submit` sets, or starts Ray on this machine.
In a loop of your own, `train_worker` shows all that is needed: rank and world size for the feed.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from trainer.config import TrainerConfig
from trainer.config_file import load_config
from trainer.errors import ConfigError

COLLECTIVE_TIMEOUT_S = 1800


def train_worker(settings: dict[str, Any]) -> None:
    """One rank: Ray Train has made the process group; the rest is as under torchrun."""
    from trainer.distributed import World
    from trainer.logs import LogFormat, set_up_logs
    from trainer.loop import train
    from trainer.miner_link import GrpcMiner

    config, context = TrainerConfig.model_validate(settings), get_context()
    rank = context.get_world_rank()
    set_up_logs(logging.INFO if rank == 0 else logging.WARNING, LogFormat.TEXT, rank)
    train(config, GrpcMiner(config), World(rank, context.get_world_size(), get_device()))


def fit(config: TrainerConfig, *, num_workers: int, use_gpu: bool, max_failures: int) -> None:
    """Train to the end of the run, from its newest checkpoint, whatever the world size was then.

    A worker that is lost ends all, and all start again from there, `max_failures` times.
    """
    # Collectives of numbers stay on the CPU, as under torchrun.
    backend = "cpu:gloo,cuda:nccl" if use_gpu else "gloo"
    timeout_s = int(config.miner.patience_s) + COLLECTIVE_TIMEOUT_S
    TorchTrainer(
        train_worker,
        train_loop_config=config.model_dump(mode="json"),
        torch_config=TorchConfig(backend=backend, timeout_s=timeout_s),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=config.run_id,
            storage_path=str(config.out / "ray-train"),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    ).fit()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the trainer")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--workers", type=int, default=1, help="ranks")
    parser.add_argument("--gpu", action="store_true", help="a GPU for each; otherwise a CPU")
    parser.add_argument("--max-failures", type=int, default=3, help="how often it starts again")
    given = parser.parse_args()
    config = load_config(TrainerConfig, given.config, given.overrides)
    if not config.out.is_absolute():
        raise ConfigError(f"out={config.out} must be absolute: workers have folders of their own")
    address = os.environ.get("RAY_ADDRESS", "local")
    here = {"num_cpus": max(os.cpu_count() or 1, given.workers)} if address == "local" else {}
    ray.init(address=address, **here)
    fit(
        config,
        num_workers=given.workers,
        use_gpu=given.gpu,
        max_failures=given.max_failures,
    )


if __name__ == "__main__":
    main()
