"""Batch norm over the rows of all ranks, on devices where torch has none (CPU with gloo).

Knows nothing of the encoder, the loss or how rows are dealt to ranks.

Shape legend: B = rows of this rank, C = channels, R = ranks.
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
    up to float32 rounding of the inputs, however far the mean lies from zero. Statistics are taken
    in float32 (float64 for float64 inputs) also where autocast gives bfloat16 or float16; outputs
    keep the inputs' dtype. Needs a process group and at least one row on every rank; a collective
    call in training. In evaluation it is local, also without running statistics (each rank then
    normalises by its own rows, as :class:`torch.nn.SyncBatchNorm` does).

    Cost: one all-gather of 2 C + 1 float64 values forward, one all-reduce of 2 C values backward.
    Source: Ioffe and Szegedy, Batch Normalization (2015); Peng et al., MegDet (2018); Chan, Golub
    and LeVeque, Algorithms for Computing the Sample Variance (1983), for joining the ranks.
    """

    def forward(self, inputs_BC: torch.Tensor) -> torch.Tensor:
        """Normalise [B, C, ...].

        Raises:
            ValueError: The inputs have fewer than two dimensions.
            RuntimeError: This rank has no row.
        """
        if not self.training:
            return super().forward(inputs_BC)
        self._check_input_dim(inputs_BC)
        dtype = torch.promote_types(inputs_BC.dtype, torch.float32)
        wide_BC = inputs_BC.to(dtype)
        mean_C, variance_C, count = _global_moments(wide_BC.detach())
        self._follow(mean_C, variance_C, count)
        weight_C = torch.ones_like(mean_C) if self.weight is None else self.weight.to(dtype)
        bias_C = torch.zeros_like(mean_C) if self.bias is None else self.bias.to(dtype)
        outputs_BC: torch.Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            wide_BC, weight_C, bias_C, (mean_C, variance_C, count, self.eps)
        )
        return outputs_BC.to(inputs_BC.dtype)

    def _follow(self, mean_C: torch.Tensor, variance_C: torch.Tensor, count: float) -> None:
        """Move the running statistics as torch does: with the unbiased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
        unbiased_C = variance_C * (count / max(count - 1, 1))
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), momentum)

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
    """Mean and biased variance over all ranks, and the number of values per channel.

    Variances are joined about the global mean: a difference of squares would lose them where the
    mean is large.
    """
    mean_C, variance_C = torch.batch_norm_update_stats(inputs_BC, None, None, 0.0)
    count = inputs_BC.numel() / inputs_BC.shape[1]
    own = torch.cat([mean_C.double(), variance_C, mean_C.new_full((1,), count)])
    ranks = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, own)
    joined = torch.stack(ranks)
    (means_RC, variances_RC), counts_R1 = joined[:, :-1].chunk(2, dim=1), joined[:, -1:]
    total = counts_R1.sum()
    shares_R1 = counts_R1 / total
    mean_C64 = (shares_R1 * means_RC).sum(0)
    variance_C64 = (shares_R1 * (variances_RC + (means_RC - mean_C64).square())).sum(0)
    return mean_C64.to(mean_C.dtype), variance_C64.to(mean_C.dtype), float(total)


def share_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm in ``module``, affine or not, by a shared one with the same state.

    Parameters and buffers stay the same tensors under the same names, so weights are
    interchangeable, and what was frozen or used twice still is.

    Returns:
        ``module`` itself, changed in place; where it is a batch norm, its shared form.
    """
    if isinstance(module, _BatchNorm):
        return _shared(module)
    for parent in list(module.modules()):
        # Not named_children(), which passes over the second name of one layer.
        for name, child in list(parent._modules.items()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, _shared(child))
    return module


def _shared(layer: _BatchNorm) -> SharedBatchNorm:
    shared = SharedBatchNorm(
        layer.num_features,
        eps=layer.eps,
        momentum=layer.momentum,
        affine=layer.affine,
        track_running_stats=layer.track_running_stats,
    )
    shared._parameters.update(layer._parameters)
    shared._buffers.update(layer._buffers)
    return shared.train(layer.training)
