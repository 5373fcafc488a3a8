"""Sets for searches on a GPU, and their neighbours by one masked product in float64."""

from dataclasses import dataclass

import numpy as np

from miner.types import Candidates, IdentityTable

TIE = 1e-5


@dataclass(frozen=True)
class Case:
    """Unit rows, their identities, and the anchors of a search."""

    rows_ND: np.ndarray
    ids_N: np.ndarray
    anchors_A: np.ndarray
    k: int

    @property
    def identities(self) -> IdentityTable:
        return IdentityTable.from_ids(self.ids_N.astype(np.int32))


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_case(rows: int, dim: int, k: int, identities: int, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    ids_N = np.unique(rng.integers(identities, size=rows), return_inverse=True)[1]
    return Case(unit(rng.normal(size=(rows, dim))), ids_N, rng.integers(rows, size=300), k)


def duplicates() -> Case:
    case = random_case(3000, 24, 40, 500)
    copies = case.rows_ND[np.random.default_rng(1).integers(200, size=3000)]
    return Case(copies, case.ids_N, case.anchors_A, case.k)


def one_identity_with_nearly_all() -> Case:
    case = random_case(5000, 32, 50, 400)
    ids_N = np.where(np.random.default_rng(2).random(5000) < 0.99, 0, case.ids_N + 1)
    return Case(case.rows_ND, np.unique(ids_N, return_inverse=True)[1], case.anchors_A, 50)


def one_identity_that_crowds() -> Case:
    """Its nearest 2048 rows are all its own."""
    case = random_case(6000, 16, 30, 1500)
    rows, ids_N = case.rows_ND.copy(), case.ids_N + 1
    rows[:3000] = unit(rows[0] + 0.01 * np.random.default_rng(3).normal(size=(3000, 16)))
    ids_N[:3000] = 0
    return Case(rows, np.unique(ids_N, return_inverse=True)[1], case.anchors_A, 30)


def hardly_different() -> Case:
    """Similarities that float16 cannot tell apart."""
    rng = np.random.default_rng(4)
    rows = unit(unit(rng.normal(size=(1, 24))) + 2e-3 * rng.normal(size=(4000, 24)))
    return Case(rows, np.arange(4000) // 2, np.arange(0, 4000, 40), 20)


CASES = {
    "plain": random_case(20_000, 128, 50, 1000),
    "dim-7": random_case(3000, 7, 20, 300),
    "dim-100": random_case(9000, 100, 33, 300),
    "k-above-gallery": random_case(40, 16, 60, 9),
    "deep": random_case(9000, 16, 1500, 2000),
    "duplicates": duplicates(),
    "one-identity-with-nearly-all": one_identity_with_nearly_all(),
    "one-identity-that-crowds": one_identity_that_crowds(),
    "hardly-different": hardly_different(),
}


def assert_nearest(found: Candidates, case: Case) -> None:
    """Rows of other identities, their float32 products, and none nearer left out."""
    rows_AK, given_AK = found.row_ids_AK, found.similarities_AK
    assert rows_AK.shape == given_AK.shape == (len(case.anchors_A), case.k)
    products_AN = case.rows_ND[case.anchors_A].astype(np.float64) @ case.rows_ND.T.astype(float)
    own_AN = case.ids_N[case.anchors_A][:, None] == case.ids_N[None, :]
    products_AN[own_AN] = -np.inf
    best_AK = -np.sort(-products_AN, axis=1)[:, : case.k]
    best_AK = np.pad(best_AK, ((0, 0), (0, case.k - best_AK.shape[1])), constant_values=-np.inf)
    is_row_AK = rows_AK >= 0
    assert (is_row_AK == np.isfinite(best_AK)).all(), "as many as there are"
    assert np.isneginf(given_AK[~is_row_AK]).all()
    at_AK = np.where(is_row_AK, rows_AK, 0)
    assert not np.take_along_axis(own_AN, at_AK, axis=1)[is_row_AK].any(), "own identity"
    own_product_AK = np.take_along_axis(products_AN, at_AK, axis=1)
    assert np.abs(given_AK - own_product_AK)[is_row_AK].max(initial=0) < TIE, "its own product"
    assert np.abs(given_AK - best_AK)[is_row_AK].max(initial=0) < TIE, "a nearer one is left out"
    for count, all_rows, all_given in zip(is_row_AK.sum(axis=1), rows_AK, given_AK, strict=True):
        rows, given = all_rows[:count], all_given[:count]
        assert len(np.unique(rows)) == len(rows), "no row twice"
        assert (np.lexsort((rows, -given)) == np.arange(len(rows))).all(), "best first, by row id"
