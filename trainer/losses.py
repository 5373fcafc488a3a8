"""The triplet losses: over the miner's triplets, over triplets found in the batch, or two of these.

Losses and in-batch miners are pytorch-metric-learning's. This module knows neither ranks nor the
feed; :mod:`trainer.distributed` merges the ranks' rows before they come here.

Shape legend: R = rows of the batch, U = distinct rows among them, T = triplets, D = dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from trainer.config import LossConfig

__all__ = ["BatchIndex", "TripletLoss"]


@dataclass(frozen=True, slots=True)
class BatchIndex:
    """What the loss has to know of a batch beside its embeddings; int64 tensors.

    Attributes:
        row_ids_R: [R] dataset rows; a row that several groups hold occurs several times.
        identity_ids_R: [R].
        anchors_T, positives_T, negatives_T: [T] positions among the R rows.
    """

    row_ids_R: torch.Tensor
    identity_ids_R: torch.Tensor
    anchors_T: torch.Tensor
    positives_T: torch.Tensor
    negatives_T: torch.Tensor

    def to(self, device: torch.device) -> BatchIndex:
        """The same on another device."""
        return BatchIndex(*(getattr(self, name).to(device) for name in self.__slots__))

    @classmethod
    def merge(cls, parts: list[BatchIndex]) -> BatchIndex:
        """One batch out of the ranks' shares, rows in the order of ``parts``.

        Example:
            >>> columns = [7, 8, 9], [1, 1, 2], [0], [1], [2]
            >>> share = BatchIndex(*map(torch.tensor, columns))
            >>> BatchIndex.merge([share, share]).negatives_T.tolist()
            [2, 5]
        """
        begins = [0]
        for part in parts:
            begins.append(begins[-1] + len(part.row_ids_R))
        return cls(
            torch.cat([part.row_ids_R for part in parts]),
            torch.cat([part.identity_ids_R for part in parts]),
            *(
                torch.cat([getattr(p, name) + b for p, b in zip(parts, begins, strict=False)])
                for name in ("anchors_T", "positives_T", "negatives_T")
            ),
        )


class TripletLoss:
    """Triplet margin loss on Euclidean distances of L2-normalised embeddings.

    ``max(0, d_ap - d_an + margin)``, averaged over the triplets where it is positive. By mode:

    - ``mined``: the triplets of the batch, as the miner chose them;
    - ``in_batch_hard``: for each row as anchor its farthest positive and its nearest negative
      (Hermans et al. 2017, batch hard);
    - ``in_batch_semi_hard``: all triplets with ``d_ap < d_an <= d_ap + margin``
      (Schroff et al. 2015);
    - ``...+...``: the sum of two of these.

    In the sum of both in-batch parts the hard one fades before the space collapses: with the
    batch's crowding ``c``, the squared length of its mean embedding (1 where all rows are equal),
    its weight is ``(1 - c) / (1 - crowding_limit)``, at most 1, and no gradient flows through it.
    Hard triplets pull a space together that is full of wrong labels; semi-hard ones push it apart.

    In-batch mining uses every dataset row once, however often the batch holds it, so that a row is
    never its own positive. Where no triplet is left the loss is 0, with zero gradients.

    Cost: semi-hard mining looks at all U^3 triplets (10 ms for 192 rows); the others at U^2 pairs.
    """

    def __init__(self, config: LossConfig) -> None:
        # Seconds of import, and needed by training only.
        from pytorch_metric_learning import distances, losses, miners

        parts = config.mode.split("+")
        self._mined = "mined" in parts
        self._miners: list[Any] = []
        self._crowding_limit = config.crowding_limit
        distance = distances.LpDistance(normalize_embeddings=True, p=2)
        if "in_batch_hard" in parts:
            self._miners.append(miners.BatchHardMiner(distance=distance))
        if "in_batch_semi_hard" in parts:
            semi_hard = miners.TripletMarginMiner(
                margin=config.margin, type_of_triplets="semihard", distance=distance
            )
            self._miners.append(semi_hard)
        self._criterion = losses.TripletMarginLoss(margin=config.margin, distance=distance)

    def __call__(self, embeddings_RD: torch.Tensor, batch: BatchIndex) -> torch.Tensor:
        """The loss of one batch, a scalar with gradient.

        Args:
            embeddings_RD: [R, D] float32, in the order of ``batch``'s rows.
            batch: On the same device.
        """
        loss = torch.zeros((), device=embeddings_RD.device)
        if self._mined:
            mined = (batch.anchors_T, batch.positives_T, batch.negatives_T)
            loss = loss + self._criterion(embeddings_RD, batch.identity_ids_R, mined)
        if not self._miners:
            return loss
        first_U = _first_occurrences(batch.row_ids_R)
        distinct_UD, identities_U = embeddings_RD[first_U], batch.identity_ids_R[first_U]
        parts = [
            self._criterion(distinct_UD, identities_U, miner(distinct_UD, identities_U))
            for miner in self._miners
        ]
        if len(parts) > 1:  # hard comes first
            parts[0] = parts[0] * _room_left(distinct_UD, self._crowding_limit)
        for part in parts:
            loss = loss + part
        return loss


def _room_left(embeddings_UD: torch.Tensor, limit: float) -> torch.Tensor:
    """1 up to the limit of crowding, from there falling to 0 for a collapsed batch.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # the squared length of their mean is 1/2
        >>> round(float(_room_left(rows, 0.2)), 3), float(_room_left(rows, 0.8))
        (0.625, 1.0)
    """
    if limit == 1:
        return torch.ones((), device=embeddings_UD.device)
    mean_D = torch.nn.functional.normalize(embeddings_UD.detach()).mean(dim=0)
    return ((1 - mean_D.square().sum()) / (1 - limit)).clamp(0, 1)


def _first_occurrences(row_ids_R: torch.Tensor) -> torch.Tensor:
    """Positions of the first occurrence of each value, ascending."""
    _, inverse_R = torch.unique(row_ids_R, return_inverse=True)
    positions_R = torch.arange(len(row_ids_R), device=row_ids_R.device)
    first_U = torch.full((int(inverse_R.max()) + 1,), len(row_ids_R), device=row_ids_R.device)
    return first_U.scatter_reduce(0, inverse_R, positions_R, "amin").sort().values
