"""The contact sheet shows each group's anchor, positive and negatives, or says why it cannot."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from miner.app.contact_sheet import draw_sheet
from miner.core import SelectionConfig, random_groups
from miner.data import DatasetConfig, RowStore, ingest
from miner.errors import DatasetError, RoundExpiredError
from miner.rounds import RoundDraft, RoundLog, RoundWriter


def make_store(folder: Path, images: list[bytes]) -> RowStore:
    path = folder / "data.parquet"
    names = [f"identity-with-a-long-name-{i // 3}" for i in range(len(images))]
    columns = {"sample_id": list(range(len(images))), "identity": names, "image": images}
    pq.write_table(pa.table(columns), path)
    ingest(DatasetConfig(uri=str(path)), folder / "store")
    return RowStore.open(folder / "store")


def seal_random_round(folder: Path, store: RowStore) -> None:
    config = SelectionConfig(strategy="random", groups_per_round=4, identities_per_group=3)
    selection = random_groups(store.catalog.identities, config, seed=1, round_id=1)
    draft = RoundDraft(
        model_step=0,
        weights_sha256="",
        dataset_fingerprint=store.fingerprint,
        strategy="random",
        config={},
        seed=1,
        index={},
        recall=None,
        selection={},
        phases_s={},
        created_unix_s=0.0,
    )
    RoundWriter.open(RoundLog(folder)).seal(selection.groups, draft)


def square(grey: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), grey, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_every_group_gets_a_line_of_pictures(tmp_path: Path) -> None:
    store = make_store(tmp_path, [square(20 * i) for i in range(12)])
    seal_random_round(tmp_path, store)
    draw_sheet(tmp_path, tmp_path / "store", tmp_path / "out" / "sheet.png", num_groups=3)
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.height > 3 * 100
        assert sheet.width > 4 * 100, "anchor, positive and two negatives stand side by side"


def test_a_payload_without_images_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path, [b"no image"] * 12)
    seal_random_round(tmp_path, store)
    with pytest.raises(DatasetError, match=r"row \d+ has no image among its columns .*image"):
        draw_sheet(tmp_path, tmp_path / "store", tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_an_empty_log_and_a_missing_round_are_told_apart(tmp_path: Path) -> None:
    store = make_store(tmp_path, [square(20 * i) for i in range(12)])
    RoundLog(tmp_path)
    with pytest.raises(RoundExpiredError, match="holds no sealed round yet"):
        draw_sheet(tmp_path, tmp_path / "store", tmp_path / "sheet.png")
    seal_random_round(tmp_path, store)
    with pytest.raises(RoundExpiredError, match="round 7"):
        draw_sheet(tmp_path, tmp_path / "store", tmp_path / "sheet.png", round_id=7)
