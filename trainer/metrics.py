"""Retrieval and verification figures of embeddings, over all pairs, in bounded memory.

Pure NumPy: it knows neither encoders nor files. Two passes over the similarities in blocks of rows:
the first ranks neighbours and fills histograms, the second counts, per identity, the impostor pairs
around the threshold, for the confidence interval.

Shape legend: N = rows, sorted by identity inside this module; I = identities; B = rows of a block;
D = dimensions; H = bins of similarity; L = levels of the threshold; Q = queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.blocks import SortedRows, nearest, sort_rows
from trainer.intervals import Interval, LevelCounts, Resamples

__all__ = ["Metrics", "measure"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

NUM_BINS = 1 << 17
"""Bins of equal width in Euclidean distance, 1.5e-5 each: fine where similarities crowd, near 1."""

LEVELS_L = np.geomspace(1 / 8, 8, 49)
"""False-accept rates, as multiples of the wanted one, between which the interval interpolates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What :func:`measure` found; every rate between 0 and 1.

    Attributes:
        recall_at_1: Share of queries whose nearest other row has the query's identity.
        recall_at_1_by_identity: The same, averaged within each identity first.
        map_at_r: MAP@R (Musgrave et al. 2020), mean over queries.
        map_at_r_by_identity: The same, averaged within each identity first.
        roc_auc: Area under the ROC curve over all pairs of rows; ties count half.
        roc_auc_error: The exact area is within this of ``roc_auc``.
        tar_at_far: Share of same-identity pairs above the threshold.
        tar_at_far_error: The exact share is at most this much above ``tar_at_far``.
        far: The false-accept rate that was asked for.
        threshold: Similarity from which a pair is accepted.
        num_rows, num_identities, num_queries, num_positive_pairs, num_negative_pairs: Sizes.
    """

    recall_at_1: float
    recall_at_1_by_identity: float
    map_at_r: Interval
    map_at_r_by_identity: Interval
    roc_auc: float
    roc_auc_error: float
    tar_at_far: Interval
    tar_at_far_error: float
    far: float
    threshold: float
    num_rows: int
    num_identities: int
    num_queries: int
    num_positive_pairs: int
    num_negative_pairs: int


def measure(
    embeddings_ND: F32, identities_N: I64, *, far: float = 1e-3, seed: int = 0, block: int = 128
) -> Metrics:
    """Measure embeddings as a gallery searched by itself, and as pairs to verify.

    Queries are the rows of identities with at least two rows; the gallery is every other row;
    pairs are all pairs of two rows. Neighbours of equal similarity rank by ascending row.

    Similarities are binned in ``NUM_BINS`` bins, so pairs that differ by less than a bin count as
    tied; the reported errors bound what that can change. The threshold lies on a bin's edge, the
    lowest whose false-accept rate is at most ``far``.

    The intervals are percentiles over resamples of the identities (:mod:`trainer.intervals`).

    Args:
        embeddings_ND: [N, D] float32, L2-normalised.
        identities_N: [N] int64, any numbers.
        far: The false-accept rate at which the TAR is taken.
        seed: Of the resamples.
        block: Rows per block.

    Raises:
        EvaluationError: Fewer than two identities, none with two rows, non-finite or unnormalised
            rows.

    Cost: O(N^2 D) time, about 13 s for 15,000 x 128 on one core; O(block x N + I + NUM_BINS)
        memory beside the input.
    Source: Musgrave, Belongie, Lim, A Metric Learning Reality Check (2020), for MAP@R.
    """
    table = sort_rows(embeddings_ND, identities_N)
    first = _first_pass(table, block)
    negatives_H = first.all_H - first.positives_H
    threshold_bin = _threshold_bin(negatives_H, far)
    tar_bin = _share_from(first.positives_H, threshold_bin)
    counts = _second_pass(table, negatives_H, far, block)
    draws = Resamples(table.num_identities, seed)
    queries_I, precision_I = table.query_counts_I, first.precision_sum_I
    num_queries = int(queries_I.sum())
    is_query_I = queries_I > 0
    mean_I = np.divide(precision_I, queries_I, out=np.zeros_like(precision_I), where=is_query_I)
    return Metrics(
        recall_at_1=float(first.hits_at_1_I.sum()) / num_queries,
        recall_at_1_by_identity=float(
            (first.hits_at_1_I[is_query_I] / queries_I[is_query_I]).mean()
        ),
        map_at_r=draws.ratio(precision_I, queries_I),
        map_at_r_by_identity=draws.ratio(mean_I, is_query_I),
        roc_auc=_area(first.positives_H, negatives_H),
        roc_auc_error=_tied_share(first.positives_H, negatives_H) / 2,
        tar_at_far=draws.tar(tar_bin, counts, far),
        # One bin lower the rate would be too high: the exact threshold lies between the two edges.
        tar_at_far_error=_share_from(first.positives_H, max(threshold_bin - 1, 0)) - tar_bin,
        far=far,
        threshold=_lower_edge(threshold_bin),
        num_rows=table.num_rows,
        num_identities=table.num_identities,
        num_queries=num_queries,
        num_positive_pairs=int(first.positives_H.sum()) // 2,
        num_negative_pairs=int(negatives_H.sum()) // 2,
    )


@dataclass(slots=True)
class _FirstPass:
    """Sums of the first pass; every pair of rows counts twice, once from each side."""

    all_H: I64
    positives_H: I64
    precision_sum_I: F64
    hits_at_1_I: I64


def _first_pass(table: SortedRows, block: int) -> _FirstPass:
    found = _FirstPass(
        np.zeros(NUM_BINS, np.int64),
        np.zeros(NUM_BINS, np.int64),
        np.zeros(table.num_identities),
        np.zeros(table.num_identities, np.int64),
    )
    for begin, end, similarities_BN in table.blocks(block):
        bins_BN = _bins(similarities_BN)
        found.all_H += np.bincount(bins_BN.ravel(), minlength=NUM_BINS + 1)[:NUM_BINS]
        for row in range(begin, end):
            own_bins = bins_BN[row - begin, _own_rows(table, row)]
            np.add.at(found.positives_H, own_bins[own_bins < NUM_BINS], 1)
        _rank(table, begin, similarities_BN, found)
    return found


def _second_pass(table: SortedRows, negatives_H: I64, far: float, block: int) -> LevelCounts:
    """Count the pairs around the threshold by identity."""
    thresholds_L = np.array([_threshold_bin(negatives_H, min(1.0, far * x)) for x in LEVELS_L])
    ascending_L = thresholds_L[::-1]
    lowest = _lower_edge(int(ascending_L[0]) - 1)
    shape = (2, table.num_identities, len(LEVELS_L) + 1)
    counts_2IL = np.zeros(shape, np.int64)
    for begin, _, similarities_BN in table.blocks(block):
        row_P, column_P = np.nonzero(similarities_BN >= lowest)
        passed_P = np.searchsorted(ascending_L, _bins(similarities_BN[row_P, column_P]), "right")
        own_P = table.identities_N[begin + row_P]
        is_negative_P = own_P != table.identities_N[column_P]
        np.add.at(counts_2IL, (is_negative_P.astype(np.int64), own_P, passed_P), 1)
    # passed = how many of the levels accept the pair; level l accepts it if passed >= L - l.
    accepted_2IL = counts_2IL[:, :, ::-1].cumsum(axis=2)[:, :, :-1]
    sizes_I = table.sizes_I
    return LevelCounts(
        accepted_2IL[0],
        accepted_2IL[1],
        sizes_I * (sizes_I - 1),
        sizes_I * (table.num_rows - sizes_I),
    )


def _bins(similarities: F32) -> npt.NDArray[np.int64]:
    """Bin of each similarity; -inf, a row with itself, goes to the extra bin ``NUM_BINS``."""
    # Half the distance is sqrt((1 - s) / 2). Every operation keeps the order, rounding included.
    scaled = (np.float32(1) - similarities) * np.float32(0.5)
    np.sqrt(scaled, out=scaled)
    np.subtract(np.float32(1), scaled, out=scaled)
    scaled *= np.float32(NUM_BINS)
    np.minimum(scaled, np.float32(NUM_BINS - 1), out=scaled)
    np.copyto(scaled, np.float32(NUM_BINS), where=scaled < 0)
    whole: I64 = scaled.astype(np.int64)
    return whole


def _lower_edge(bin_number: int) -> float:
    """The similarity from which on pairs fall into this bin or a higher one."""
    return 1 - 2 * (1 - bin_number / NUM_BINS) ** 2


def _own_rows(table: SortedRows, row: int) -> slice:
    identity = table.identities_N[row]
    return slice(int(table.offsets_I1[identity]), int(table.offsets_I1[identity + 1]))


def _rank(table: SortedRows, begin: int, similarities_BN: F32, found: _FirstPass) -> None:
    """Add the block's precision sums and hits; rows of lone identities are no queries."""
    own_B = table.identities_N[begin : begin + len(similarities_BN)]
    others_B = table.sizes_I[own_B] - 1
    queries_Q = np.flatnonzero(others_B > 0)
    if not len(queries_Q):
        return
    own_Q, others_Q = own_B[queries_Q], others_B[queries_Q]
    depth = int(others_Q.max())
    neighbours_QR = nearest(similarities_BN[queries_Q], table.rows_N, depth)
    hits_QR = table.identities_N[neighbours_QR] == own_Q[:, None]
    ranks_R = np.arange(1, depth + 1)
    precision_QR = hits_QR.cumsum(axis=1) / ranks_R
    counted_QR = hits_QR & (ranks_R <= others_Q[:, None])
    precision_Q = (precision_QR * counted_QR).sum(axis=1) / others_Q
    np.add.at(found.precision_sum_I, own_Q, precision_Q)
    np.add.at(found.hits_at_1_I, own_Q, hits_QR[:, 0])


def _threshold_bin(negatives_H: I64, far: float) -> int:
    """The lowest bin from which on at most the share ``far`` of the negatives lies."""
    from_bin_H = np.cumsum(negatives_H[::-1])[::-1]
    return int((from_bin_H > far * negatives_H.sum()).sum())


def _share_from(counts_H: I64, begin: int) -> float:
    return float(counts_H[begin:].sum() / counts_H.sum())


def _area(positives_H: I64, negatives_H: I64) -> float:
    below_H = np.cumsum(negatives_H) - negatives_H
    wins = (positives_H * (below_H + negatives_H / 2)).sum()
    return float(wins / (float(positives_H.sum()) * float(negatives_H.sum())))


def _tied_share(positives_H: I64, negatives_H: I64) -> float:
    tied = (positives_H.astype(np.float64) * negatives_H).sum()
    return float(tied / (float(positives_H.sum()) * float(negatives_H.sum())))
