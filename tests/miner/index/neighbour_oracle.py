"""Neighbours of other identities by nested loops; similarities within TIE count as equal."""

import numpy as np

from miner.types import Candidates

TIE = 1e-5


def unit_rows(rng: np.random.Generator, num_rows: int, dim: int) -> np.ndarray:
    raw = rng.normal(size=(num_rows, dim))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def brute_force(embeddings, identity_ids, anchor) -> dict[int, float]:
    """Every row of another identity with its similarity, by plain loops in float64."""
    found = {}
    for row in range(len(embeddings)):
        if identity_ids[row] != identity_ids[anchor]:
            pairs = zip(embeddings[anchor].tolist(), embeddings[row].tolist(), strict=True)
            found[row] = sum(a * b for a, b in pairs)
    return found


def assert_exact(candidates: Candidates, embeddings, identity_ids, k: int) -> None:
    for position, anchor in enumerate(candidates.anchor_ids_A.tolist()):
        others = brute_force(embeddings, identity_ids, anchor)
        rows = candidates.row_ids_AK[position].tolist()
        similarities = candidates.similarities_AK[position].tolist()
        count = min(k, len(others))
        assert rows[count:] == [-1] * (k - count)
        assert similarities[count:] == [-np.inf] * (k - count)
        assert len(set(rows[:count])) == count, "no row twice"
        best = sorted(others.values(), reverse=True)[:count]
        for row, similarity, expected in zip(rows, similarities, best, strict=False):
            assert row in others, "a candidate has another identity"
            assert abs(similarity - others[row]) < TIE
            assert abs(similarity - expected) < TIE, "as near as the oracle's of this rank"
        for i in range(count - 1):
            assert (similarities[i], -rows[i]) > (similarities[i + 1], -rows[i + 1])
