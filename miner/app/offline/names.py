"""A sealed round and what its rows are called: by an offline folder's samples, or by a row store.

Shape legend: N = rows, I = identities.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from miner.app.offline.folder import SAMPLES_FILE, read_fingerprint, read_samples
from miner.app.offline.inputs import number_identities
from miner.data.row_store import RowStore
from miner.errors import DatasetError, RoundExpiredError
from miner.rounds import RoundLog, RoundManifest

__all__ = ["RowNames", "find_round", "open_names"]


@dataclass(frozen=True, slots=True)
class RowNames:
    """The user's names for row ids and identity ids.

    Attributes:
        num_rows: N.
        identity_names: [I] int64 or string.
        sample_ids: [N] int64 or string; None where the samples have no ids.
    """

    num_rows: int
    identity_names: pa.Array
    sample_ids: pa.Array | None


def find_round(root: Path, round_id: int | None) -> tuple[RoundLog, RoundManifest]:
    """A round of the log in ``root``, by default the newest.

    Raises:
        RoundLogError: There is no log, or it is damaged.
        RoundExpiredError: There is no such round, or none at all.
    """
    log = RoundLog(root, must_exist=True)
    wanted = log.newest() if round_id is None else round_id
    if wanted is None:
        raise RoundExpiredError(f"{root} holds no sealed round yet")
    return log, log.manifest(wanted)


def open_names(root: Path, fingerprint: str, store: Path | None = None) -> RowNames | None:
    """The names for a round in folder ``root``; None if they are not there.

    Args:
        root: Of offline rounds, or the state folder of a service.
        fingerprint: Of the dataset that the round was mined from.
        store: The row store, where it is not ``store`` in the folder.

    Raises:
        DatasetError: A row store or samples file is there but damaged, or of another dataset; or
            ``store`` was given and is none.
    """
    if store is None and (root / SAMPLES_FILE).exists():
        _require_same(root / SAMPLES_FILE, read_fingerprint(root), fingerprint)
        samples = read_samples(root)
        identities = samples["identity"].combine_chunks()
        ids = samples["id"].combine_chunks() if "id" in samples.column_names else None
        return RowNames(len(identities), number_identities(identities)[0], ids)
    place = store or root / "store"
    if store is None and not (place / "STORE.json").exists():
        return None
    opened = RowStore.open(place)
    _require_same(place, opened.fingerprint, fingerprint)
    catalog = opened.catalog
    return RowNames(catalog.num_rows, catalog.identity_names, catalog.sample_ids)


def _require_same(place: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise DatasetError(
            f"{place} is of another dataset than the round (fingerprint {found[:12]}, the round "
            f"has {wanted[:12]}): give the row store that the round was mined from"
        )
