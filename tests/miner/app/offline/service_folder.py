"""The state folder of a service, for what reads rounds of both kinds."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from miner.core import SelectionConfig, random_groups
from miner.data import DatasetConfig, RowStore, ingest
from miner.rounds import RoundLog, RoundWriter
from tests.miner.rounds.round_samples import make_draft


def make_service(folder: Path, *, seal: bool = True) -> None:
    """20 samples of 4 identities; with ``seal`` one random round."""
    columns = {
        "sample_id": [f"photo-{row}" for row in range(20)],
        "identity": [f"person-{row % 4}" for row in range(20)],
        "image": [b""] * 20,
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder.with_suffix(".parquet"))
    ingest(DatasetConfig(uri=str(folder.with_suffix(".parquet"))), folder / "store")
    store = RowStore.open(folder / "store")
    if seal:
        config = SelectionConfig(strategy="random", groups_per_round=4)
        made = random_groups(store.catalog.identities, config, seed=1, round_id=1)
        draft = make_draft(dataset_fingerprint=store.fingerprint)
        RoundWriter.open(RoundLog(folder)).seal(made.groups, draft)
