"""Flat triplets as Arrow tables: triplets, n-tuples or labelled pairs, as trainers read them.

Knows no files. Shape legend: T = triplets, P = pairs of an anchor and a positive within a group,
M = negatives per pair.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from miner.app.offline.names import RowNames
from miner.app.offline.triplets import FlatTriplets
from miner.rounds import RoundManifest

__all__ = ["pair_table", "suspects_table", "triplet_table", "tuple_table"]

_EVIDENCE = {
    "mixing": pa.float64(),
    "num_copies": pa.int64(),
    "num_mutual": pa.int64(),
    "similarity": pa.float64(),
    "p_value": pa.float64(),
}

ROLES = ("anchor", "positive", "negative")


def triplet_table(
    flat: FlatTriplets, names: RowNames | None = None, values: pa.Array | None = None
) -> pa.Table:
    """One row per triplet.

    Args:
        flat: The triplets.
        names: Adds the samples' own ids, where there are any, and the names of identities.
        values: Stand in place of row ids; the table then has the three columns alone, which is what
            the sentence-transformers trainer wants.
    """
    columns = {role: _content(flat.rows_T[role], values) for role in ROLES}
    if values is not None:
        return pa.table(columns)
    if names is not None:
        if names.sample_ids is not None:
            for role in ROLES:
                columns[f"{role}_id"] = names.sample_ids.take(columns[role])
        for role, identity_ids in flat.identities_T.items():
            columns[f"{role}_identity"] = names.identity_names.take(pa.array(identity_ids))
    columns["s_ap"] = pa.array(flat.similarities_ap_T, from_pandas=True)  # NaN: null
    columns["s_an"] = pa.array(flat.similarities_an_T, from_pandas=True)
    columns["rank"] = pa.array(flat.ranks_T)
    columns["tier"] = pa.array(flat.tiers_T)
    return pa.table(columns)


def tuple_table(flat: FlatTriplets, num_negatives: int, values: pa.Array | None = None) -> pa.Table:
    """``anchor, positive, negative_1 .. negative_M``, of the pairs with that many negatives.

    A pair with more gives the first ones, a pair with fewer is left out.
    """
    pairs = np.flatnonzero(flat.counts_P >= num_negatives)
    places_PM = flat.negatives_of(pairs, num_negatives)
    leads_P = flat.begins_P1[pairs]
    columns = {role: _content(flat.rows_T[role][leads_P], values) for role in ROLES[:2]}
    for m in range(num_negatives):
        rows = flat.rows_T["negative"][places_PM[:, m]]
        columns[f"negative_{m + 1}"] = _content(rows, values)
    return pa.table(columns)


def pair_table(flat: FlatTriplets, values: pa.Array | None = None) -> pa.Table:
    """``anchor, other, label``: each pair's positive with label 1, then its negatives with 0."""
    num_pairs, num_triplets = len(flat.counts_P), len(flat.ranks_T)
    # A row for each triplet, and one more before the first of each pair.
    owners_T = np.repeat(np.arange(num_pairs), flat.counts_P)
    negative_places_T = np.arange(num_triplets) + owners_T + 1
    positive_places_P = flat.begins_P1[:-1] + np.arange(num_pairs)
    anchors, others = (np.empty(num_pairs + num_triplets, np.int64) for _ in range(2))
    leads_P = flat.begins_P1[:-1]
    anchors[negative_places_T] = flat.rows_T["anchor"]
    others[negative_places_T] = flat.rows_T["negative"]
    anchors[positive_places_P] = flat.rows_T["anchor"][leads_P]
    others[positive_places_P] = flat.rows_T["positive"][leads_P]
    labels = np.zeros(num_pairs + num_triplets, np.int64)
    labels[positive_places_P] = 1
    return pa.table(
        {
            "anchor": _content(anchors, values),
            "other": _content(others, values),
            "label": pa.array(labels),
        }
    )


def _content(rows: npt.NDArray[np.int64], values: pa.Array | None) -> pa.Array:
    return pa.array(rows) if values is None else pc.take(values, pa.array(rows))


def suspects_table(manifest: RoundManifest, names: RowNames | None) -> pa.Table:
    """One row per pair of identities that the round's quarantine lists, strongest evidence first.

    Identities are called as the user calls them, or by number where ``names`` is None.
    """
    quarantine: dict[str, Any] = dict(manifest.selection).get("quarantine") or {}  # type: ignore[assignment]
    pairs: list[dict[str, Any]] = quarantine.get("pairs", [])
    columns = {}
    for side, name in enumerate(("left", "right")):
        ids = pa.array([pair["identities"][side] for pair in pairs], pa.int64())
        columns[name] = ids if names is None else names.identity_names.take(ids)
        columns[f"num_{name}"] = pa.array([pair["num_samples"][side] for pair in pairs], pa.int64())
    for key, kind in _EVIDENCE.items():
        columns[key] = pa.array([pair.get(key) for pair in pairs], kind)
    return pa.table(columns)
