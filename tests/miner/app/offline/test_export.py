"""Exported files hold a round's triplets, in every form, read back with other libraries."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miner.app.offline import ExportRequest, MinedRound, export, export_round, mine
from miner.errors import CoalfaceError, DatasetError, RoundExpiredError, RoundLogError
from miner.rounds import RoundLog, RoundWriter
from miner.types import Groups
from tests.miner.app.offline.offline_samples import World, make_world, save_table, selection
from tests.miner.app.offline.service_folder import make_service
from tests.miner.rounds.round_samples import make_draft, make_groups

CAPPED = selection(strategy="semi_hard", identities_per_group=5, max_uses_per_identity=14)
COLUMNS = ["anchor", "positive", "negative", "s_ap", "s_an", "rank", "tier"]


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(60, 9)


@pytest.fixture(scope="module")
def root(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Round 1 with ids, in which anchors have 1 to 4 negatives; round 2 is random."""
    folder = tmp_path_factory.mktemp("rounds")
    for config in (CAPPED, selection(strategy="random", groups_per_round=6)):
        mine(world.embeddings, world.identities, ids=world.ids, out=folder, config=config)
    return folder


def loop(groups: Groups) -> list[dict[str, Any]]:
    """Every triplet, group after group, by nested loops."""
    rows = []
    for g in range(groups.num_groups):
        first, seen = groups.row_offsets_G1[g], {}
        for t in range(groups.triplet_offsets_G1[g], groups.triplet_offsets_G1[g + 1]):
            anchor, positive, negative = (
                int(groups.row_ids_R[first + getattr(groups, f"{role}s_T")[t]])
                for role in ("anchor", "positive", "negative")
            )
            pair = int(groups.anchors_T[t]), int(groups.positives_T[t])
            seen[pair] = seen.get(pair, -1) + 1
            rows.append(
                {
                    "group": g,
                    "anchor": anchor,
                    "positive": positive,
                    "negative": negative,
                    "s_ap": float(groups.similarities_ap_T[t]),
                    "s_an": float(groups.similarities_an_T[t]),
                    "rank": seen[pair],
                    "tier": int(groups.tiers_T[t]),
                }
            )
    return rows


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [
        json.loads(line, parse_constant=pytest.fail)
        for line in path.read_text("utf-8").splitlines()
    ]


def exported(root: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    chosen = "parquet" if out.suffix == ".parquet" else "jsonl"
    report = export_round(ExportRequest(root, out, format=chosen, **options))
    rows = read(out)
    assert report.num_rows == len(rows)
    return rows


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_triplets_are_the_round_s_with_ids_and_names(
    root: Path, world: World, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "GROUPS_AT_ONCE", 7)
    rows = exported(root, tmp_path / f"t.{suffix}", round_id=1)
    expected = loop(RoundLog(root).read(1))
    assert len(rows) == len(expected) > 7
    for row, wanted in zip(rows, expected, strict=True):
        for key in COLUMNS:
            assert row[key] == pytest.approx(wanted[key], abs=1e-6), key
        for role in ("anchor", "positive", "negative"):
            assert row[f"{role}_id"] == world.ids[row[role]]
        for role in ("anchor", "negative"):
            assert row[f"{role}_identity"] == world.identities[row[role]]
    assert {row["rank"] for row in rows} == {0, 1, 2, 3}


def test_float32_similarities_come_back_to_the_bit_from_both_formats(
    root: Path, tmp_path: Path
) -> None:
    for suffix in ("parquet", "jsonl"):
        rows = exported(root, tmp_path / f"t.{suffix}", round_id=1)
        found = np.array([row["s_an"] for row in rows], np.float32)
        expected = np.array([row["s_an"] for row in loop(RoundLog(root).read(1))], np.float32)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_random_round_has_null_for_similarities(root: Path, tmp_path: Path, suffix: str) -> None:
    rows = exported(root, tmp_path / f"t.{suffix}")
    assert {row["s_ap"] for row in rows} == {row["s_an"] for row in rows} == {None}
    assert {row["tier"] for row in rows} == {2}


def test_n_tuples_hold_the_anchors_with_enough_negatives(root: Path, tmp_path: Path) -> None:
    by_pair: dict[tuple[int, int, int], list[int]] = {}
    for row in loop(RoundLog(root).read(1)):
        by_pair.setdefault((row["group"], row["anchor"], row["positive"]), []).append(
            row["negative"]
        )
    for num_negatives in (None, 2):
        out = tmp_path / "t.parquet"
        request = ExportRequest(root, out, 1, form="n-tuple", num_negatives=num_negatives)
        report, size = export_round(request), num_negatives or 4
        expected = [
            (anchor, positive, *negatives[:size])
            for (_, anchor, positive), negatives in by_pair.items()
            if len(negatives) >= size
        ]
        assert [tuple(row.values()) for row in read(out)] == expected
        names = ["anchor", "positive", *(f"negative_{m + 1}" for m in range(size))]
        assert pq.read_schema(out).names == names
        assert report.num_left_out == len(by_pair) - len(expected) > 0


def test_labeled_pairs_give_each_positive_and_its_negatives(root: Path, tmp_path: Path) -> None:
    rows = exported(root, tmp_path / "t.jsonl", round_id=1, form="labeled-pair")
    expected = []
    for row in loop(RoundLog(root).read(1)):
        if row["rank"] == 0:
            expected.append({"anchor": row["anchor"], "other": row["positive"], "label": 1})
        expected.append({"anchor": row["anchor"], "other": row["negative"], "label": 0})
    assert rows == expected


def test_pairs_that_take_turns_within_a_group_are_kept_apart(tmp_path: Path) -> None:
    base = make_groups(30, seed=4)
    rng = np.random.default_rng(0)
    anchors = rng.integers(0, 2, base.num_triplets).astype(np.int32)
    groups = Groups(
        **{name: getattr(base, name) for name in base.__slots__ if name != "anchors_T"},
        anchors_T=anchors,
    )
    RoundWriter.open(RoundLog(tmp_path)).seal(groups, make_draft())
    rows = exported(tmp_path, tmp_path / "t.parquet")
    keys = ("anchor", "positive", "negative", "rank")
    assert sorted(tuple(row[key] for key in keys) for row in rows) == sorted(
        tuple(row[key] for key in keys) for row in loop(groups)
    )


@pytest.mark.parametrize("form", ["triplet", "n-tuple", "labeled-pair"])
def test_text_stands_in_place_of_row_ids_and_nothing_else_is_in_the_file(
    root: Path, tmp_path: Path, form: Any
) -> None:
    texts = [f'text "{row}" with Umlauts äöü\n' for row in range(60)]
    table = pa.table({"text": texts})
    given = save_table(table, tmp_path / "texts.parquet") + ":text"
    plain = exported(root, tmp_path / "p.parquet", round_id=1, form=form)
    for suffix in ("parquet", "jsonl"):
        rows = exported(root, tmp_path / f"t.{suffix}", round_id=1, form=form, text=given)
        for row, original in zip(rows, plain, strict=True):
            assert set(row) <= {*COLUMNS[:3], "other", "label"} | {
                f"negative_{m}" for m in range(9)
            }
            for name, value in row.items():
                expected = original[name] if name == "label" else texts[original[name]]
                assert value == expected


def test_pictures_stand_in_place_of_row_ids_in_parquet_alone(root: Path, tmp_path: Path) -> None:
    table = pa.table({"image": [bytes([row]) for row in range(60)]})
    given = save_table(table, tmp_path / "images.parquet") + ":image"
    rows = exported(root, tmp_path / "t.parquet", text=given)
    assert set(rows[0]) == set(COLUMNS[:3])
    assert isinstance(rows[0]["negative"], bytes)
    with pytest.raises(DatasetError, match=r"binary.*Parquet"):
        exported(root, tmp_path / "t.jsonl", text=given)


def test_text_that_does_not_fit_the_rows_is_refused(root: Path, tmp_path: Path) -> None:
    for texts, told in ((["a"] * 59, "59 rows.*over 60"), (["a", None] * 30, r"30 rows.*\[1, 3")):
        given = save_table(pa.table({"text": texts}), tmp_path / "texts.parquet") + ":text"
        with pytest.raises(DatasetError, match=told):
            export_round(ExportRequest(root, tmp_path / "t.parquet", text=given))
    assert not (tmp_path / "t.parquet").exists()


def test_a_service_s_rounds_have_the_ids_of_its_row_store(tmp_path: Path) -> None:
    make_service(tmp_path / "state")
    rows = exported(tmp_path / "state", tmp_path / "t.jsonl")
    assert rows
    for row in rows:
        assert row["anchor_id"] == f"photo-{row['anchor']}"
        assert row["negative_identity"] == f"person-{row['negative'] % 4}"


def test_without_its_row_store_a_service_s_round_has_row_ids_alone(tmp_path: Path) -> None:
    make_service(tmp_path / "state")
    (tmp_path / "state" / "store").rename(tmp_path / "elsewhere")
    rows = exported(tmp_path / "state", tmp_path / "t.jsonl")
    assert list(rows[0]) == COLUMNS
    named = exported(tmp_path / "state", tmp_path / "t.jsonl", store=tmp_path / "elsewhere")
    assert "anchor_id" in named[0]
    given = save_table(pa.table({"text": ["a"] * 2}), tmp_path / "texts.parquet") + ":text"
    with pytest.raises(DatasetError, match="at least"):
        exported(tmp_path / "state", tmp_path / "t.jsonl", text=given)


def test_a_row_store_of_another_dataset_is_refused(root: Path, tmp_path: Path) -> None:
    make_service(tmp_path / "state", seal=False)
    request = ExportRequest(root, tmp_path / "t.parquet", store=tmp_path / "state" / "store")
    with pytest.raises(DatasetError, match="another dataset"):
        export_round(request)


def test_a_round_or_log_that_is_not_there_is_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(RoundExpiredError, match=r"round 9 .*1-2"):
        export_round(ExportRequest(root, tmp_path / "t.parquet", 9))
    with pytest.raises(RoundLogError, match="no round log"):
        export_round(ExportRequest(tmp_path / "none", tmp_path / "t.parquet"))
    RoundLog(tmp_path / "empty")
    with pytest.raises(RoundExpiredError, match="no sealed round"):
        export_round(ExportRequest(tmp_path / "empty", tmp_path / "t.parquet"))


def test_a_failure_leaves_the_earlier_file_and_nothing_else(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "t.jsonl"
    exported(root, out)
    before = out.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_to_lines", full)
    with pytest.raises(CoalfaceError, match=r"t.jsonl cannot be written.*No space left"):
        export_round(ExportRequest(root, out, format="jsonl"))
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]
    with pytest.raises(CoalfaceError, match="cannot be written"):
        export_round(ExportRequest(root, out / "below" / "t.parquet"))


def test_the_python_interface_gives_the_same_table(
    root: Path, world: World, tmp_path: Path
) -> None:
    exported(root, tmp_path / "t.parquet", round_id=1)
    mined: MinedRound = mine(world.embeddings, world.identities, ids=world.ids, config=CAPPED)
    assert mined.triplets().equals(pq.read_table(tmp_path / "t.parquet"))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_colons_in_names_are_no_uris(tmp_path: Path, suffix: str) -> None:
    place, world = tmp_path / "in:1", make_world()
    place.mkdir()
    with (place / f"col:on.{suffix}").open("wb") as file:
        if suffix == "parquet":
            pq.write_table(world.table(), file)
        else:
            with pa.ipc.new_file(file, world.table().schema) as writer:
                writer.write_table(world.table())
    source, out = f"{place}/col:on.{suffix}", tmp_path / "r:1"
    for round_id in (1, 2):
        mined = mine(f"{source}:vector", f"{source}:person", ids=f"{source}:id", out=out)
        assert mined.round_id == round_id
    report = export_round(ExportRequest(out, tmp_path / "t:1.parquet"))
    assert report.num_rows == mined.groups.num_triplets


def test_more_negatives_than_any_pair_has_are_refused(root: Path, tmp_path: Path) -> None:
    request = ExportRequest(root, tmp_path / "t.jsonl", 1, "n-tuple", "jsonl", 9)
    with pytest.raises(CoalfaceError, match="the most that one has is 4"):
        export_round(request)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_no_suspects_are_an_empty_file(root: Path, tmp_path: Path, form: Any) -> None:
    out = tmp_path / f"s.{form}"
    assert export_round(ExportRequest(root, out, 1, "suspects", form)).num_rows == 0
    assert read(out) == []


def test_suspects_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    true = np.repeat(np.arange(6), 20)
    rows = rng.normal(size=(6, 16))[true] + 0.2 * rng.normal(size=(120, 16))
    given = np.array([f"p{i}" for i in true], dtype="U8")
    given[10:20] = "again"
    mined = mine(rows, given, out=tmp_path / "o")
    pairs = mined.report.quarantine.pairs
    export_round(ExportRequest(tmp_path / "o", tmp_path / "s.parquet", form="suspects"))
    found = read(tmp_path / "s.parquet")
    assert len(found) == len(pairs) > 0
    assert {found[0]["left"], found[0]["right"]} == {"p0", "again"}
    assert {found[0]["num_left"], found[0]["num_right"]} == {10}
    assert repr(mined) == "MinedRound(round_id=1)"
