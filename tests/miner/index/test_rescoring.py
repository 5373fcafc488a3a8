"""Rows found and rows known, compared in all dimensions: each once, best first."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from miner.index.rescoring import NONE, rescore

NUM_ROWS, DIM, BATCH = 40, 5, 7


@given(
    seed=st.integers(0, 2**20),
    num_found=st.integers(0, 12),
    num_known=st.integers(0, 12),
    num_kept=st.integers(1, 30),
)
def test_they_are_those_of_a_plain_sort(seed, num_found, num_known, num_kept):
    rng = np.random.default_rng(seed)
    embeddings = rng.integers(-2, 3, (NUM_ROWS, DIM)).astype(np.float32)  # many equal ones
    identity_ids = rng.integers(0, 5, NUM_ROWS).astype(np.int32)
    anchors = rng.integers(0, NUM_ROWS, BATCH)
    rows = rng.permutation(NUM_ROWS)
    places = np.full((BATCH, num_found), -1)
    for at, anchor in enumerate(anchors):
        others = np.flatnonzero(identity_ids[rows] != identity_ids[anchor])
        found = rng.permutation(others)[: rng.integers(0, num_found + 1)]
        places[at, : len(found)] = found
    known = rng.integers(0, NUM_ROWS, (BATCH, num_known)).astype(np.uint32)
    known[rng.random(known.shape) < 0.2] = NONE
    targets = rng.permutation(BATCH)
    similarities = np.zeros((BATCH, num_kept), np.float32)
    row_ids = np.zeros((BATCH, num_kept), np.int64)
    rescore(
        embeddings[anchors],
        embeddings,
        identity_ids,
        identity_ids[anchors],
        rows,
        places,
        known,
        targets,
        similarities,
        row_ids,
    )
    for at, anchor in enumerate(anchors):
        wanted = {int(rows[place]) for place in places[at] if place >= 0}
        wanted |= {int(row) for row in known[at] if row != NONE}
        scored = sorted(
            (-float(embeddings[anchor] @ embeddings[row]), row)
            for row in wanted
            if identity_ids[row] != identity_ids[anchor]
        )[:num_kept]
        padding = num_kept - len(scored)
        assert row_ids[targets[at]].tolist() == [row for _, row in scored] + [-1] * padding
        assert similarities[targets[at]].tolist() == [-s for s, _ in scored] + [-np.inf] * padding
