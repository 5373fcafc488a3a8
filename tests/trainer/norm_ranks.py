"""Cases of batch norm, and a rank that measures its own rows of every one of them.

The oracle is the same measurement of torch's layers on all rows in one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from trainer.batch_norm import share_batch_norm

__all__ = ["CASES", "SHARES", "Case", "Measured", "evaluate", "measure", "run_rank"]

SHARES = (slice(0, 5), slice(5, 16))
"""The rows of either rank, unequal."""

Measured = dict[str, torch.Tensor]
_CHANNELS = 3
_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer and what it is given."""

    shape: tuple[int, ...] = (_CHANNELS, 4, 4)
    mean: float = 0.5
    std: float = 2.0
    drift: float = 0.0
    """How much the mean grows from row to row, so that ranks' means differ."""
    channels_last: bool = False
    autocast: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def build(self) -> nn.Sequential:
        """The layer, its affine map drawn from a fixed seed."""
        torch.manual_seed(3)
        kind = nn.BatchNorm2d if len(self.shape) == 3 else nn.BatchNorm1d
        norm = kind(_CHANNELS, **dict(self.options))
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        before = nn.Conv2d(_CHANNELS, _CHANNELS, 1) if self.autocast else nn.Identity()
        return nn.Sequential(before, norm)

    def rows(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All ranks' inputs and the gradient of the loss by the outputs, both [16, C, ...]."""
        generator = torch.Generator().manual_seed(step)
        size = (SHARES[-1].stop, *self.shape)
        noise, gradient = (torch.randn(size, generator=generator) for _ in range(2))
        row = torch.arange(size[0]).view(-1, *[1] * len(self.shape))
        inputs = self.mean + self.drift * row + self.std * noise
        if self.channels_last:
            inputs = inputs.to(memory_format=torch.channels_last)
        return inputs, gradient


_FAR: dict[str, Any] = {"mean": 30.0, "std": 0.01}
CASES = {
    "images": Case(),
    "channels_last": Case(channels_last=True),
    "vectors": Case(shape=(_CHANNELS,)),
    "sequences": Case(shape=(_CHANNELS, 6)),
    "ranks_differ": Case(drift=1.0),
    "far": Case(**_FAR),
    "far_channels_last": Case(**_FAR, channels_last=True),
    "far_ranks_differ": Case(**_FAR, drift=0.002),
    "cumulative": Case(options=(("momentum", None), ("eps", 1e-3))),
    "not_affine": Case(options=(("affine", False),)),
    "untracked": Case(options=(("track_running_stats", False),)),
    "autocast": Case(autocast=True),
}


def measure(case: Case, network: nn.Module, share: slice, dtype: torch.dtype) -> Measured:
    """Outputs, gradients and state after some steps on the rows of ``share``.

    Parameters' gradients are summed over the steps.
    """
    network.to(dtype).train()
    measured: Measured = {}
    for step in range(_STEPS):
        inputs, gradient = (rows[share].to(dtype) for rows in case.rows(step))
        inputs.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
            outputs = network(inputs)
        outputs.backward(gradient.to(outputs.dtype))
        assert inputs.grad is not None
        measured |= {f"outputs.{step}": outputs.detach(), f"inputs.{step}": inputs.grad}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        measured[f"gradient.{name}"] = parameter.grad
    return measured | {f"state.{k}": v.clone() for k, v in network.state_dict().items()}


def evaluate(case: Case, network: nn.Module, share: slice) -> torch.Tensor:
    """Outputs in evaluation for the rows of ``share``."""
    with torch.inference_mode():
        outputs: torch.Tensor = network.eval()(case.rows(0)[0][share])
    return outputs


def run_rank(rank: int, folder: Path) -> None:
    """Measure every case as ``rank`` of two and save what was found.

    Rank 1 alone evaluates: a collective call there would time out.
    """
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=len(SHARES),
        timeout=timedelta(seconds=20),
    )
    found: dict[str, Measured] = {}
    for name, case in CASES.items():
        network = share_batch_norm(case.build())
        found[name] = measure(case, network, SHARES[rank], torch.float32)
        if rank == 1:
            found[name]["evaluated"] = evaluate(case, network, SHARES[rank])
    torch.save(found, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
