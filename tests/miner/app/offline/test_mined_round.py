"""A round from embeddings: right by hand, the same every time, whatever form the input has."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import miner
from miner.app.offline import MinedRound, mine, mined_round
from miner.config import MineConfig
from miner.errors import ConfigError, SearchError, SelectionError
from miner.index import candidate_search
from miner.rounds import RoundLog
from tests.miner.app.offline.offline_samples import (
    files_below,
    make_world,
    save_table,
    selection,
)
from tests.miner.rounds.round_samples import bytes_of

HARDEST = selection(strategy="hardest", positive="hardest", identities_per_group=4)


def triplets_of(mined: MinedRound) -> set[tuple[int, int, int, int]]:
    columns = mined.triplets().select(["anchor", "positive", "negative", "rank"])
    return set(zip(*(column.to_pylist() for column in columns.columns), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_triplets_are_those_of_a_search_by_hand(seed: int) -> None:
    world = make_world(seed=seed)
    mined = mine(world.embeddings, world.identities, config=HARDEST)
    assert triplets_of(mined) == world.triplets(num_negatives=3)
    table = mined.triplets()
    similarity = world.embeddings @ world.embeddings.T
    for name, role in (("s_ap", "positive"), ("s_an", "negative")):
        expected = similarity[table["anchor"].to_numpy(), table[role].to_numpy()]
        np.testing.assert_allclose(table[name].to_numpy(), expected, atol=1e-6)


def test_equal_input_and_seed_give_equal_bytes_and_another_seed_does_not() -> None:
    world = make_world(60)
    first, again, other = (
        mine(world.embeddings, world.identities, config={"seed": seed, **selection()})
        for seed in (3, 3, 4)
    )
    assert bytes_of(first.groups) == bytes_of(again.groups)
    assert bytes_of(first.groups) != bytes_of(other.groups)


def test_every_row_that_can_be_an_anchor_is_one_unless_the_budget_is_set() -> None:
    world = make_world(60)
    names, counts = np.unique(world.identities, return_counts=True)
    possible = set(np.flatnonzero(np.isin(world.identities, names[counts >= 2])).tolist())
    mined = mine(world.embeddings, world.identities, config=selection())
    assert set(mined.triplets()["anchor"].to_pylist()) == possible
    assert len(possible) < len(world.identities)
    few = mine(world.embeddings, world.identities, config=selection(groups_per_round=5))
    assert few.groups.num_groups == 5


def test_the_input_may_have_any_form(tmp_path: Path) -> None:
    world = make_world()
    expected = bytes_of(mine(world.embeddings, world.identities, config=HARDEST).groups)
    files = world.save(tmp_path)
    given: list[tuple[Any, Any]] = [
        (files["embeddings"], files["identities"]),
        (tmp_path / "embeddings.npy", list(world.identities)),
        (list(world.embeddings), pa.array(world.identities).dictionary_encode()),
        (np.asfortranarray(world.embeddings), world.identities.astype(object)),
        (world.embeddings.astype(">f4"), world.identities.astype("S")),
    ]
    for name in ("table.parquet", "table.arrow", "table_stream.arrow"):
        path = save_table(world.table(), tmp_path / name)
        given.append((f"{path}:vector", f"{path}:person"))
    lists = world.table().set_column(0, "a:b", pa.array(list(world.embeddings)))
    path = save_table(lists, tmp_path / "lists:1.parquet")
    given.append((f"{path}:a:b", f"{path}:person"))
    for embeddings, identities in given:
        groups = mine(embeddings, identities, config=HARDEST).groups
        assert bytes_of(groups) == expected, (embeddings, identities)


@pytest.mark.parametrize(("dtype", "scale"), [("float16", 1), ("float64", 1e200), ("float32", 7)])
def test_other_precisions_and_lengths_are_converted(dtype: str, scale: float) -> None:
    world = make_world()
    given = (world.embeddings.astype(np.float64) * scale).astype(dtype)
    mined = mine(given, world.identities, config=HARDEST)
    exact = mine(world.embeddings, world.identities, config=HARDEST)
    np.testing.assert_allclose(
        np.sort(mined.groups.similarities_an_T), np.sort(exact.groups.similarities_an_T), atol=2e-3
    )
    if dtype != "float16":
        assert triplets_of(mined) == world.triplets(num_negatives=3)


def test_a_normalised_float32_file_is_used_as_it_lies_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, seen = make_world(), []

    def spy(search: Any, embeddings_ND: Any, *arguments: Any, **options: Any) -> Any:
        found = mined_round_of_core(search, embeddings_ND, *arguments, **options)
        seen.extend((embeddings_ND, search._search._embeddings_ND))
        return found

    mined_round_of_core = mined_round.mine_round
    monkeypatch.setattr(mined_round, "mine_round", spy)
    files = world.save(tmp_path)
    mine(files["embeddings"], files["identities"], config=HARDEST)
    assert isinstance(seen[0], np.memmap)
    assert np.shares_memory(seen[0], seen[1])


def test_inverted_lists_give_a_round_that_says_what_recall_it_was_made_with(tmp_path: Path) -> None:
    world = make_world(3000, 150, 12)
    lists = {**HARDEST, "index": {"kind": "ivf", "num_lists": 50, "target_recall": 0.97}}
    mined = mine(world.embeddings, world.identities, out=tmp_path / "o", config=lists)
    exact = mine(world.embeddings, world.identities, config=HARDEST)
    manifest = mined.manifest
    assert manifest is not None
    assert manifest.recall is not None
    assert manifest.recall >= 0.9
    assert (manifest.index["kind"], manifest.index["num_lists"]) == ("ivf", 50)
    alike = len(triplets_of(mined) & triplets_of(exact)) / len(triplets_of(exact))
    assert alike > manifest.recall - 0.05


def test_a_round_below_the_floor_of_recall_is_not_sealed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(candidate_search, "MAX_DEEPENINGS", 0)
    world = make_world(3000, 150, 12)
    index = {"kind": "ivf", "num_lists": 200, "num_probes": 1, "min_recall": 0.99}
    with pytest.raises(SearchError, match=r"recall stayed below min_recall=0\.99: 1 probes"):
        mine(world.embeddings, world.identities, out=tmp_path / "o", config={"index": index})
    assert not list(tmp_path.rglob("MANIFEST.json"))


def test_ids_and_names_are_given_with_the_triplets() -> None:
    world = make_world()
    table = mine(world.embeddings, world.identities, ids=world.ids, config=HARDEST).triplets()
    for role in ("anchor", "positive", "negative"):
        rows = table[role].to_numpy()
        assert table[f"{role}_id"].to_pylist() == world.ids[rows].tolist()
        if role != "positive":
            assert table[f"{role}_identity"].to_pylist() == world.identities[rows].tolist()


def test_integer_identities_keep_their_values() -> None:
    world = make_world()
    numbers = np.array([-(10**12) + int(name[-1]) for name in world.identities])
    table = mine(world.embeddings, numbers, config=HARDEST).triplets()
    assert table["anchor_identity"].to_pylist() == numbers[table["anchor"].to_numpy()].tolist()
    assert "anchor_id" not in table.column_names


def test_more_candidates_than_rows_are_those_there_are() -> None:
    world = make_world(12, 4)
    settings = {"strategy": "hardest", "num_candidates": 60_000, "identities_per_group": 30}
    mined = mine(world.embeddings, world.identities, config=selection(**settings))
    others = len(np.unique(world.identities)) - 1
    assert set(np.diff(mined.groups.triplet_offsets_G1).tolist()) == {others}
    assert mined.report.shortfalls == {"candidates": mined.report.num_anchors}
    dropping = selection(**settings, underfill="drop")
    with pytest.raises(SelectionError, match="fewer than 29 negatives"):
        mine(world.embeddings, world.identities, config=dropping)


def test_a_random_round_has_no_similarities_and_names_no_weights(tmp_path: Path) -> None:
    world = make_world()
    config = selection(strategy="random")
    mined = mine(world.embeddings, world.identities, out=tmp_path / "o", config=config)
    assert mined.triplets()["s_an"].null_count == mined.groups.num_triplets
    assert mined.manifest is not None
    assert (mined.manifest.weights_sha256, mined.manifest.index) == ("", {})


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    world = make_world()
    assert mine(world.embeddings, world.identities, config=HARDEST).manifest is None
    assert not list(tmp_path.iterdir())


def test_a_sealed_round_says_how_it_was_made(tmp_path: Path) -> None:
    world = make_world()
    mined = mine(
        world.embeddings, world.identities, out=tmp_path / "o", config=HARDEST, model_step=7
    )
    manifest = RoundLog(tmp_path / "o", must_exist=True).manifest(1)
    assert mined.manifest == manifest
    assert bytes_of(RoundLog(tmp_path / "o").read(1)) == bytes_of(mined.groups)
    assert (manifest.model_step, manifest.recall, manifest.strategy) == (7, None, "hardest")
    assert manifest.index == {"kind": "flat", "num_rows": 40, "dim": 6}
    assert manifest.config["groups_per_round"] == mined.groups.num_groups
    assert set(manifest.phases_s) == {"reading", "searching", "selecting"}
    same = mine(world.embeddings, world.identities, out=tmp_path / "p", config=HARDEST).manifest
    other = mine(
        np.roll(world.embeddings, 1, axis=1), world.identities, out=tmp_path / "q", config=HARDEST
    ).manifest
    assert same is not None
    assert other is not None
    assert manifest.weights_sha256 == same.weights_sha256 != other.weights_sha256
    assert manifest.dataset_fingerprint == same.dataset_fingerprint == other.dataset_fingerprint


def test_later_rounds_look_back_on_earlier_ones(tmp_path: Path) -> None:
    steered = {"start": -0.3, "violating_fraction": 0.5}
    config = selection(strategy="curriculum", curriculum=steered, momentum_rounds=1)
    world = make_world(60)
    targets = []
    for step in (10, 20, 30):
        mined = mine(
            world.embeddings,
            world.identities,
            out=tmp_path / "o",
            config=config,
            model_step=step,
        )
        targets.append(mined.report.target_hardness)
    assert mined.round_id == 3
    assert targets[0] == -0.3
    assert len(set(targets)) == 3, "each round corrects the target of the one before"


def test_old_rounds_go_when_there_are_more_than_are_to_be_kept(tmp_path: Path) -> None:
    world, config = make_world(), {**HARDEST, "rounds": {"keep_rounds": 2}}
    for _ in range(4):
        mine(world.embeddings, world.identities, out=tmp_path / "o", config=config)
    assert RoundLog(tmp_path / "o").sealed_ids() == [3, 4]
    assert RoundLog(tmp_path / "o").verify() == []


def test_settings_may_be_a_mapping_a_file_or_the_model(tmp_path: Path) -> None:
    world = make_world()
    (tmp_path / "c.yaml").write_text("seed: 5\nselection: {strategy: semi_hard}\n")
    model = MineConfig.model_validate({"seed": 5, "selection": {"strategy": "semi_hard"}})
    results = {
        str(bytes_of(mine(world.embeddings, world.identities, config=config).groups))
        for config in (tmp_path / "c.yaml", str(tmp_path / "c.yaml"), model, model.model_dump())
    }
    assert len(results) == 1
    with pytest.raises(ConfigError, match="did you mean 'strategy'"):
        mine(world.embeddings, world.identities, config={"selection": {"stratgy": "random"}})


def test_the_package_gives_the_miner_without_loading_a_service(tmp_path: Path) -> None:
    assert miner.mine is mine
    code = (
        "import sys; from miner import mine; import numpy as np\n"
        "rows = np.eye(6, dtype=np.float32)[[0, 0, 1, 1, 2, 2]]\n"
        f"mine(rows, [0, 0, 1, 1, 2, 2], out={str(tmp_path / 'o')!r})\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"faiss", "pyarrow"} <= loaded
    assert not loaded & {"ray", "grpc", "torch", "google", "matplotlib", "trainer", "protos"}


def test_a_failed_selection_leaves_no_folder(tmp_path: Path) -> None:
    world = make_world()
    config = selection(strategy="hardest", max_similarity=-0.999, underfill="drop")
    with pytest.raises(SelectionError, match="max_similarity"):
        mine(world.embeddings, world.identities, out=tmp_path / "o", config=config)
    assert not files_below(tmp_path)
    assert not list(tmp_path.iterdir())
