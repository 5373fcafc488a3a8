"""Batch norm over the rows of all ranks, on devices where torch has none (CPU with gloo).

Shape legend: B = rows of this rank, C = channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["SharedBatchNorm", "share_batch_norm"]


class SharedBatchNorm(_BatchNorm):
    """Normalises by mean and variance of the global batch, however it is split over ranks.

    Guarantee: outputs, running statistics and (where every rank takes the same loss of all ranks'
    rows) gradients equal those of :class:`torch.nn.BatchNorm2d` on the global batch in one process,
    up to rounding. Needs a process group; a collective call in training, a local one otherwise.

    Cost: one all-reduce of 2 C + 1 values forward, one of 2 C backward.
    Source: Ioffe and Szegedy, Batch Normalization (2015); Peng et al., MegDet (2018).
    """

    def forward(self, inputs_BC: torch.Tensor) -> torch.Tensor:
        """Normalise [B, C, ...]."""
        if not self.training and self.track_running_stats:
            return super().forward(inputs_BC)
        mean_C, variance_C, count = _global_moments(inputs_BC.detach())
        self._follow(mean_C, variance_C, count)
        outputs: torch.Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            inputs_BC, self.weight, self.bias, (mean_C, variance_C, count, self.eps)
        )
        return outputs

    def _follow(self, mean_C: torch.Tensor, variance_C: torch.Tensor, count: float) -> None:
        """Move the running statistics as torch does: with the unbiased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(variance_C * (count / max(count - 1, 1)), momentum)

    def _check_input_dim(self, input: torch.Tensor) -> None:  # noqa: A002 - torch's name
        if input.dim() < 2:
            raise ValueError(f"batch norm needs [rows, channels, ...], got {tuple(input.shape)}")


class _Normalise(torch.autograd.Function):
    """The affine map of batch norm, with the gradient that flows through the global moments."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs_BC: torch.Tensor,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        moments: tuple[torch.Tensor, torch.Tensor, float, float],
    ) -> torch.Tensor:
        mean_C, variance_C, ctx.count, ctx.eps = moments
        ctx.save_for_backward(inputs_BC, weight_C, mean_C, variance_C)
        return nn.functional.batch_norm(
            inputs_BC, mean_C, variance_C, weight_C, bias_C, eps=ctx.eps
        )

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs_BC, weight_C, mean_C, variance_C = ctx.saved_tensors
        # As if the moments were constants: local sums for weight and bias come with it.
        direct_BC, weight_gradient_C, bias_gradient_C = torch.ops.aten.native_batch_norm_backward(
            gradients[0],
            inputs_BC,
            weight_C,
            mean_C,
            variance_C,
            None,
            None,
            False,
            ctx.eps,
            [True, True, True],
        )
        sums_2C = torch.cat([weight_gradient_C, bias_gradient_C])
        dist.all_reduce(sums_2C)
        by_weight_C, by_bias_C = (sums_2C / ctx.count).chunk(2)
        inverse_C = torch.rsqrt(variance_C + ctx.eps)
        slope_C = -weight_C * inverse_C * inverse_C * by_weight_C
        offset_C = -weight_C * inverse_C * by_bias_C - slope_C * mean_C
        shape = [1, -1, *([1] * (inputs_BC.dim() - 2))]
        through_BC = torch.addcmul(offset_C.view(shape), inputs_BC, slope_C.view(shape))
        return direct_BC.add_(through_BC), weight_gradient_C, bias_gradient_C, None


def _global_moments(inputs_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Float32 mean and biased variance over all ranks, and the number of values per channel.

    Each rank's moments are about its own mean; they are merged in float64, so nothing cancels that
    did not cancel in one process.
    """
    mean_C, variance_C = torch.batch_norm_update_stats(inputs_BC.float(), None, None, 0.0)
    mean_C, variance_C = mean_C.double(), variance_C.double()
    count = inputs_BC.numel() / inputs_BC.shape[1]
    own = (mean_C, variance_C + mean_C.square(), mean_C.new_ones(1))
    sums = torch.cat(own) * count
    dist.all_reduce(sums)
    mean_C, square_C = (sums[:-1] / sums[-1]).chunk(2)
    variance_C = (square_C - mean_C.square()).clamp_min_(0)
    return mean_C.float(), variance_C.float(), float(sums[-1])


def share_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm with weight and bias in ``module`` by a shared one with its state.

    The names of parameters and buffers stay, so weights are interchangeable. A batch norm without
    weight and bias stays as it is: it has nothing to learn, and normalises by each rank's rows.
    """
    if isinstance(module, _BatchNorm) and module.affine:
        shared = SharedBatchNorm(
            module.num_features,
            eps=module.eps,
            momentum=module.momentum,
            track_running_stats=module.track_running_stats,
        )
        shared.load_state_dict(module.state_dict())
        return shared.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, share_batch_norm(child))
    return module
