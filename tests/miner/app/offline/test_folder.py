"""The folder of rounds: other samples never enter it, and no kill leaves half of anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miner.app.offline import folder as folder_module
from miner.app.offline import mine
from miner.errors import DatasetError, RoundLogError
from miner.rounds import RoundLog, RoundWriter
from tests.miner.app.offline.offline_samples import World, files_below, make_world, selection
from tests.miner.app.offline.service_folder import make_service

RANDOM = selection(strategy="random", groups_per_round=6)


def mine_into(out: Path, world: World, *, with_ids: bool = True) -> int:
    ids = world.ids if with_ids else None
    return mine(world.embeddings, world.identities, ids=ids, out=out, config=RANDOM).round_id


def test_it_holds_which_sample_each_row_id_is(tmp_path: Path) -> None:
    world = make_world()
    mine_into(tmp_path / "o", world)
    table = pq.read_table(tmp_path / "o" / "samples.parquet")
    assert table["row_id"].to_pylist() == list(range(40))
    assert table["identity"].to_pylist() == world.identities.tolist()
    assert table["id"].to_pylist() == world.ids.tolist()
    mine_into(tmp_path / "p", world, with_ids=False)
    assert pq.read_schema(tmp_path / "p" / "samples.parquet").names == ["row_id", "identity"]


def test_equal_samples_add_a_round_and_others_are_refused(tmp_path: Path) -> None:
    world, out = make_world(), tmp_path / "o"
    assert [mine_into(out, world), mine_into(out, world)] == [1, 2]
    turned = World(np.roll(world.embeddings, 1, axis=1), world.identities, world.ids)
    assert mine_into(out, turned) == 3, "other embeddings of the same samples"
    before = files_below(out)
    others = {
        "identities": World(world.embeddings, np.roll(world.identities, 1), world.ids),
        "ids": World(world.embeddings, world.identities, world.ids[::-1]),
        "rows": World(world.embeddings[:-1], world.identities[:-1], world.ids[:-1]),
    }
    for other in others.values():
        with pytest.raises(DatasetError, match="other rows, identities or ids"):
            mine_into(out, other)
    with pytest.raises(DatasetError, match="other rows, identities or ids"):
        mine_into(out, world, with_ids=False)
    assert files_below(out) == before


def test_a_service_keeps_its_folder_to_itself(tmp_path: Path) -> None:
    RoundWriter.open(RoundLog(tmp_path / "with rounds"))
    make_service(tmp_path / "ingested", seal=False)
    before = files_below(tmp_path)
    for root in (tmp_path / "with rounds", tmp_path / "ingested"):
        with pytest.raises(RoundLogError, match="a service"):
            mine_into(root, make_world())
    assert files_below(tmp_path) == before, "the service's writer can still seal"


def test_a_folder_that_cannot_be_written_is_refused_before_the_search(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper" / "still"):
        with pytest.raises(RoundLogError, match=r"file is not a folder") as caught:
            mine_into(out, make_world())
        assert "\n" not in str(caught.value)


def test_a_disk_that_refuses_in_the_end_is_a_round_log_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module.pq, "write_table", full)
    with pytest.raises(RoundLogError, match="No space left"):
        mine_into(tmp_path / "o", make_world())
    assert list(files_below(tmp_path)) == ["o/LOCK"]


def test_two_processes_at_once_do_not_share_a_round_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, out = make_world(), tmp_path / "o"
    mine_into(out, world)
    really = folder_module._keep_samples

    def overtaken(root: Path, samples: folder_module.Samples) -> None:
        monkeypatch.setattr(folder_module, "_keep_samples", really)
        mine_into(out, world)
        really(root, samples)

    monkeypatch.setattr(folder_module, "_keep_samples", overtaken)
    with pytest.raises(RoundLogError, match="another process has sealed round 2"):
        mine_into(out, world)
    assert RoundLog(out).sealed_ids() == [1, 2]


def test_a_samples_file_of_another_origin_is_not_taken_for_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"row_id": [0]}), tmp_path / "samples.parquet")
    with pytest.raises(DatasetError, match="not written by this program"):
        mine_into(tmp_path, make_world())


@pytest.mark.long
@pytest.mark.parametrize("num_rounds", [0, 1])
def test_killed_at_any_point_it_is_whole_and_takes_the_next_round(
    tmp_path: Path, num_rounds: int
) -> None:
    template, work, world = tmp_path / "template", tmp_path / "work", make_world()
    template.mkdir()
    work.mkdir()
    for _ in range(num_rounds):
        mine_into(template, world)
    project = str(Path(__file__).parents[4])
    subprocess.run(
        [sys.executable, "-m", "tests.miner.app.offline.killed_miner", template, work],
        check=True,
        env={**os.environ, "PYTHONPATH": project},
        cwd=project,
    )
    remains = sorted(path for path in work.iterdir() if path.is_dir())
    assert len(remains) > 25
    for root in remains:
        sealed = RoundLog(root).sealed_ids() if (root / "LOG.json").exists() else []
        assert sealed in (list(range(1, num_rounds + 1)), list(range(1, num_rounds + 2)))
        assert mine_into(root, world) == len(sealed) + 1
        assert RoundLog(root).verify() == []
        assert {path.name for path in root.iterdir()} == {
            *("GENERATION", "LOCK", "LOG.json", "rounds", "samples.parquet"),
            *(path.name for path in root.glob(".*.tmp")),
        }
        assert not list(root.glob(".samples*"))
        shutil.rmtree(root)
