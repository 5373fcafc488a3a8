"""Losses of the composition study that the trainer does not offer (or did not, when it was run).

Each takes the embeddings of a batch and its index, and gives a scalar, as
:class:`trainer.losses.TripletLoss` does; :func:`make_loss` finds either by name.

Shape legend: R = rows of the batch, U = distinct rows among them, D = dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from pytorch_metric_learning import losses, miners
from torch.nn import functional

from trainer.config import LossConfig, LossMode
from trainer.losses import BatchIndex, TripletLoss

Loss = Callable[[torch.Tensor, BatchIndex], torch.Tensor]
MARGIN = 0.2


def make_loss(name: str) -> Loss:
    """The trainer's loss of this mode, or the one here; parts of a ``+`` are summed."""
    if name in get_args(LossMode):
        # Without the brake, which has arms of its own.
        return TripletLoss(LossConfig(mode=name, margin=MARGIN, crowding_limit=1.0))  # type: ignore[arg-type]
    if name in OTHERS:
        return OTHERS[name]()
    parts = [make_loss(part) for part in name.split("+")]
    if len(parts) == 1:
        raise ValueError(f"there is no loss {name!r}; there are {sorted(OTHERS)}")
    return lambda embeddings, batch: torch.stack([p(embeddings, batch) for p in parts]).sum()


@dataclass(slots=True)
class PairLoss:
    """A loss of pytorch-metric-learning over the distinct rows, with or without its own miner."""

    criterion: Any
    miner: Any = None
    weight: float = 1.0

    def __call__(self, embeddings_RD: torch.Tensor, batch: BatchIndex) -> torch.Tensor:
        rows_UD, identities_U = distinct(embeddings_RD, batch)
        found = None if self.miner is None else self.miner(rows_UD, identities_U)
        result: torch.Tensor = self.weight * self.criterion(rows_UD, identities_U, found)
        return result


@dataclass(slots=True)
class SteeredHardness:
    """Semi-hard always, and hard as far as the space bears it.

    The hard part's weight falls to 0 as the embeddings crowd (mean cosine of random pairs of the
    batch up to ``crowded``) and as hard triplets violate the order (share of anchors whose nearest
    negative is nearer than their farthest positive, from ``few`` to ``many``).
    """

    few: float = 0.5
    many: float = 0.95
    crowded: float = 0.5
    momentum: float = 0.9
    semi_hard: Loss = field(default_factory=lambda: make_loss("in_batch_semi_hard"))
    hard: Loss = field(default_factory=lambda: make_loss("in_batch_hard"))
    violating: float = 1.0
    similarity: float = 1.0

    def __call__(self, embeddings_RD: torch.Tensor, batch: BatchIndex) -> torch.Tensor:
        rows_UD, identities_U = distinct(embeddings_RD.detach(), batch)
        cosine_UU, same_UU = similarities(rows_UD, identities_U)
        farthest_U = cosine_UU.masked_fill(~same_UU, 2).amin(1)
        nearest_U = cosine_UU.masked_fill(same_UU, -2).amax(1)
        violating = float((nearest_U > farthest_U).float().mean())
        self.violating += (1 - self.momentum) * (violating - self.violating)
        similarity = float(cosine_UU[~same_UU].mean())
        self.similarity += (1 - self.momentum) * (similarity - self.similarity)
        weight = min(1.0, max(0.0, (self.many - self.violating) / (self.many - self.few)))
        weight *= min(1.0, max(0.0, 1 - self.similarity / self.crowded))
        loss = self.semi_hard(embeddings_RD, batch)
        return loss + weight * self.hard(embeddings_RD, batch) if weight else loss


@dataclass(slots=True)
class SelectivelyContrastive:
    """Hardest triplets that push only the negative away where it is nearer than the positive.

    Source: Xuan et al., Hard Negative Examples are Hard, but Useful (2020): NCA on the easy ones,
    ``weight * s_an`` on the hard ones. ``easiest``: the nearest positive, else a random one.
    """

    temperature: float = 0.1
    weight: float = 1.0
    easiest: bool = False

    def __call__(self, embeddings_RD: torch.Tensor, batch: BatchIndex) -> torch.Tensor:
        rows_UD, identities_U = distinct(embeddings_RD, batch)
        cosine_UU, same_UU = similarities(rows_UD, identities_U)
        own = torch.eye(len(rows_UD), dtype=torch.bool, device=rows_UD.device)
        positive_UU = same_UU & ~own
        has_U = positive_UU.any(1) & (~same_UU).any(1)
        key_UU = cosine_UU.detach() if self.easiest else torch.rand_like(cosine_UU)
        chosen_U = key_UU.masked_fill(~positive_UU, -9).argmax(1)
        s_ap = cosine_UU.gather(1, chosen_U[:, None])[:, 0][has_U]
        s_an = cosine_UU.masked_fill(same_UU, -2).amax(1)[has_U]
        easy = functional.softplus((s_an - s_ap) / self.temperature)
        return torch.where(s_an > s_ap, self.weight * s_an, easy).mean()


@dataclass(slots=True)
class SoftTriplets:
    """All triplets through two soft maxima: ``softplus((lse(s_an) + lse(-s_ap)) / t)``, per anchor.

    Between the mean of all pairs (high temperature) and the hardest pair (low).
    """

    temperature: float = 0.1
    margin: float = 0.1

    def __call__(self, embeddings_RD: torch.Tensor, batch: BatchIndex) -> torch.Tensor:
        rows_UD, identities_U = distinct(embeddings_RD, batch)
        cosine_UU, same_UU = similarities(rows_UD, identities_U)
        own = torch.eye(len(rows_UD), dtype=torch.bool, device=rows_UD.device)
        has_U = (same_UU & ~own).any(1) & (~same_UU).any(1)
        t = self.temperature
        negative_U = (cosine_UU / t).masked_fill(same_UU, -1e4).logsumexp(1)
        positive_U = (-cosine_UU / t).masked_fill(~same_UU | own, -1e4).logsumexp(1)
        return functional.softplus(negative_U + positive_U + self.margin / t)[has_U].mean() * t


def distinct(embeddings_RD: torch.Tensor, batch: BatchIndex) -> tuple[torch.Tensor, torch.Tensor]:
    """[U, D] and [U]: every dataset row once."""
    _, inverse_R = torch.unique(batch.row_ids_R, return_inverse=True)
    first_U = torch.full((int(inverse_R.max()) + 1,), len(inverse_R))
    first_U = first_U.scatter_reduce(0, inverse_R, torch.arange(len(inverse_R)), "amin").sort()[0]
    return embeddings_RD[first_U], batch.identity_ids_R[first_U]


def similarities(
    rows_UD: torch.Tensor, identities_U: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """[U, U] cosines, and which pairs share an identity (a row with itself included)."""
    unit_UD = functional.normalize(rows_UD)
    return unit_UD @ unit_UD.T, identities_U[:, None] == identities_U[None]


def _braked(limit: float) -> TripletLoss:
    mode = "in_batch_hard+in_batch_semi_hard"
    return TripletLoss(LossConfig(mode=mode, margin=MARGIN, crowding_limit=limit))


@dataclass(slots=True)
class Weighted:
    """Semi-hard, and a fixed share of hard."""

    weight: float
    semi_hard: Loss = field(default_factory=lambda: make_loss("in_batch_semi_hard"))
    hard: Loss = field(default_factory=lambda: make_loss("in_batch_hard"))

    def __call__(self, embeddings_RD: torch.Tensor, batch: BatchIndex) -> torch.Tensor:
        semi_hard = self.semi_hard(embeddings_RD, batch)
        return semi_hard + self.weight * self.hard(embeddings_RD, batch)


OTHERS: dict[str, Callable[[], Loss]] = {
    "multi_similarity": lambda: PairLoss(
        losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
        miners.MultiSimilarityMiner(epsilon=0.1),
    ),
    "multi_similarity_all": lambda: PairLoss(
        losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    ),
    "circle": lambda: PairLoss(losses.CircleLoss(m=0.4, gamma=80), None, 1 / 80),
    "sup_con": lambda: PairLoss(losses.SupConLoss(temperature=0.1)),
    "sct": SelectivelyContrastive,
    "sct_easy": lambda: SelectivelyContrastive(easiest=True),
    "soft_triplets": SoftTriplets,
    "soft_triplets_05": lambda: SoftTriplets(temperature=0.05),
    "hard_third": lambda: Weighted(1 / 3),
    "hard_double": lambda: Weighted(2.0),
    "braked_at_90": lambda: _braked(0.9),
    "braked_at_95": lambda: _braked(0.95),
    "steered": SteeredHardness,
}
