"""A last look at new weights: do they still tell samples apart?

It does not know where the weights came from. Shape legend: B = rows of the canary, D = dimensions.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from miner.embedding.config import EncoderConfig
from miner.embedding.encoder import Encoder
from miner.errors import NonFiniteError, WeightsRefusedError

__all__ = ["check_canary"]


def check_canary(encoder: Encoder, batch: pa.RecordBatch, config: EncoderConfig) -> float:
    """Embed ``batch``, whose rows should be of different identities, and judge the result.

    Returns:
        The mean similarity over all pairs of rows.

    Raises:
        WeightsRefusedError: Embeddings are not finite, or the mean similarity is above
            ``config.max_canary_similarity``; the text holds both.
        EncoderError: As `Encoder.embed`; the weights are not to blame.
    """
    begins = range(0, batch.num_rows, config.batch_rows)
    try:
        embedded_BD = np.concatenate(
            [encoder.embed(batch.slice(begin, config.batch_rows)) for begin in begins]
        )
    except NonFiniteError as exc:
        raise WeightsRefusedError(
            f"the weights do not embed the canary: {exc}; has training diverged?",
            kind="canary",
        ) from exc
    num_rows = len(embedded_BD)
    # The squared length of the sum holds every pair twice, and each row with itself once.
    total = float(np.square(embedded_BD.sum(axis=0, dtype=np.float64)).sum())
    similarity = (total - num_rows) / (num_rows * (num_rows - 1))
    if similarity > config.max_canary_similarity:
        raise WeightsRefusedError(
            f"the weights have collapsed, or are untrained: {num_rows} samples are on average "
            f"{similarity:.4f} similar, encoder.max_canary_similarity is "
            f"{config.max_canary_similarity}; nearest neighbours in such a space mean nothing",
            kind="canary",
        )
    return similarity
