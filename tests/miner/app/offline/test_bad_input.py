"""Input that cannot be mined: the message names file, column and rows; nothing is written."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from miner.app.offline import mine
from miner.errors import ConfigError, DatasetError
from miner.rounds import RoundLog
from tests.miner.app.offline.offline_samples import World, files_below, make_world, save_table

Given = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One fault: how it gets into files or arrays, and what the message must say."""

    spoil: Callable[[World, Path], Given]
    told: tuple[str, ...]


def spoiled_rows(*faults: tuple[int, float], dtype: str = "float32") -> Callable[..., Given]:
    def spoil(world: World, folder: Path) -> Given:
        rows = world.embeddings.astype(dtype)
        for row, value in faults:
            rows[row, slice(None) if value == 0 else 1] = value
        np.save(folder / "bad.npy", rows)
        return {"embeddings": folder / "bad.npy"}

    return spoil


def array(name: str, change: Callable[[World], Any]) -> Callable[..., Given]:
    """The array that replaces one of the world's, saved as .npy where it is one."""

    def spoil(world: World, folder: Path) -> Given:
        np.save(folder / "bad.npy", change(world))
        return {name: folder / "bad.npy"}

    return spoil


def column(name: str, change: Callable[[World], Any], suffix: str = "parquet") -> Any:
    def spoil(world: World, folder: Path) -> Given:
        table = world.table().append_column("bad", change(world))
        return {name: save_table(table, folder / f"bad.{suffix}") + ":bad"}

    return spoil


def content(name: str, data: bytes) -> Callable[..., Given]:
    def spoil(world: World, folder: Path) -> Given:
        (folder / name).write_bytes(data)
        return {"embeddings": folder / name}

    return spoil


def truncated(suffix: str) -> Callable[..., Given]:
    def spoil(world: World, folder: Path) -> Given:
        if suffix == "npy":
            path = Path(world.save(folder / "t")["embeddings"])
        else:
            path = Path(save_table(world.table(), folder / f"t.{suffix}"))
        path.write_bytes(path.read_bytes()[:-200])
        return {"embeddings": path if suffix == "npy" else f"{path}:vector"}

    return spoil


def with_nulls(values: Any, *rows: int) -> Any:
    items = pa.array(values).to_pylist()
    return pa.array([None if row in rows else item for row, item in enumerate(items)])


def ragged(world: World) -> Any:
    rows = world.embeddings.tolist()
    rows[4], rows[9] = rows[4][:-1], []
    return pa.array(rows)


def with_null_value(world: World) -> Any:
    rows = world.embeddings.tolist()
    rows[4][2] = rows[17][0] = None
    return pa.array(rows)


BAD = ("bad.npy",)
BAD_COLUMN = ("bad.parquet", "'bad'")

CASES = {
    "nan": Case(spoiled_rows((3, np.nan), (21, np.nan)), (*BAD, "2 rows", "[3, 21]", "'s21'")),
    "infinity": Case(spoiled_rows((3, -np.inf)), (*BAD, "1 rows", "[3]", "NaN or infinity")),
    "half infinity": Case(spoiled_rows((5, np.inf), dtype="float16"), (*BAD, "[5]")),
    "double nan": Case(spoiled_rows((5, np.nan), dtype="float64"), (*BAD, "[5]")),
    "zero": Case(spoiled_rows((0, 0), (39, 0)), (*BAD, "2 rows", "zero", "[0, 39]", "'s39'")),
    "integers": Case(
        array("embeddings", lambda w: w.embeddings.astype(np.int64)), (*BAD, "int64", "float32")
    ),
    "one vector": Case(array("embeddings", lambda w: w.embeddings[0]), (*BAD, "(6,)")),
    "three axes": Case(array("embeddings", lambda w: w.embeddings[None]), (*BAD, "(1, 40, 6)")),
    "no rows": Case(array("embeddings", lambda w: w.embeddings[:0]), (*BAD, "empty")),
    "fewer embeddings": Case(
        array("embeddings", lambda w: w.embeddings[:-1]), (*BAD, "39", "identities.npy", "40")
    ),
    "more identities": Case(
        array("identities", lambda w: np.append(w.identities, "x")), (*BAD, "41", "40")
    ),
    "fewer ids": Case(array("ids", lambda w: w.ids[:-1]), (*BAD, "39", "identities.npy", "40")),
    "repeated ids": Case(
        array("ids", lambda w: np.where(np.arange(40) == 7, "s2", w.ids)),
        (*BAD, "'s2'", "[2, 7]", "unique"),
    ),
    "objects": Case(array("identities", lambda w: w.identities.astype(object)), (*BAD, "astype")),
    "identities that are nan": Case(
        array("identities", lambda w: np.where(np.arange(40) == 7, np.nan, 1.0)),
        (*BAD, "1 rows", "[7]"),
    ),
    "identities that are fractions": Case(
        array("identities", lambda w: np.arange(40.0)), (*BAD, "double", "integers or text")
    ),
    "identities in two axes": Case(
        array("identities", lambda w: w.identities[:, None]), (*BAD, "(40, 1)")
    ),
    "identities that are no text": Case(
        array("identities", lambda w: np.array([b"\xff"] * 40)), (*BAD, "convert")
    ),
    "one identity": Case(
        array("identities", lambda w: np.zeros(40, np.int64)), (*BAD, "one identity", "40 rows")
    ),
    "no identity with two samples": Case(
        array("identities", lambda w: np.arange(40)), (*BAD, "two samples", "[0, 1, 2, 3, 4]")
    ),
    "no identities": Case(array("identities", lambda w: w.identities[:0]), (*BAD, "empty")),
    "null identities": Case(
        column("identities", lambda w: with_nulls(w.identities, 2, 30)),
        (*BAD_COLUMN, "2 rows", "[2, 30]"),
    ),
    "null ids in an arrow file": Case(
        column("ids", lambda w: with_nulls(w.ids, 9), "arrow"), ("bad.arrow", "'bad'", "[9]")
    ),
    "null embeddings": Case(
        column("embeddings", lambda w: with_nulls(w.embeddings.tolist(), 6)),
        (*BAD_COLUMN, "null", "[6]"),
    ),
    "nulls in embeddings": Case(
        column("embeddings", with_null_value), (*BAD_COLUMN, "2 rows", "[4, 17]")
    ),
    "embeddings of unequal lengths": Case(
        column("embeddings", ragged), (*BAD_COLUMN, "2 rows", "length 6", "[4, 9]")
    ),
    "nan in a column": Case(
        column(
            "embeddings",
            lambda w: pa.array(
                np.where(np.arange(40)[:, None] == 8, np.nan, w.embeddings).tolist()
            ),
        ),
        (*BAD_COLUMN, "[8]", "NaN"),
    ),
    "a column without lists": Case(
        column("embeddings", lambda w: pa.array(np.arange(40.0))), (*BAD_COLUMN, "double", "lists")
    ),
    "a missing file": Case(lambda w, f: {"embeddings": f / "none.npy"}, ("none.npy", "no file")),
    "a folder": Case(lambda w, f: {"embeddings": f}, ("no known form", "FILE:column")),
    "a missing column": Case(
        lambda w, f: {"embeddings": save_table(w.table(), f / "t.parquet") + ":vectors"},
        ("t.parquet", "'vectors'", "['vector', 'person', 'id']"),
    ),
    "no column": Case(
        lambda w, f: {"identities": save_table(w.table(), f / "t.arrow")},
        ("t.arrow:column", "['vector', 'person', 'id']"),
    ),
    "a column of an array": Case(
        lambda w, f: {"identities": w.save(f)["identities"] + ":person"},
        ("identities.npy", "alone"),
    ),
    "no array": Case(content("bad.npy", b"no array at all"), (*BAD, "another format")),
    "an empty file": Case(content("bad.npy", b""), BAD),
    "a pickle": Case(content("bad.npy", pickle.dumps([1.0])), BAD),
    "an unknown suffix": Case(content("bad.csv", b"1,2"), ("bad.csv", ".npy", ".parquet")),
    "no parquet": Case(
        lambda w, f: {"embeddings": str(content("t.parquet", b"PAR1")(w, f)["embeddings"]) + ":a"},
        ("t.parquet", "cannot be read"),
    ),
    "a truncated npy": Case(truncated("npy"), ("embeddings.npy", "truncated")),
    "a truncated parquet": Case(truncated("parquet"), ("t.parquet", "truncated")),
    "a truncated arrow": Case(truncated("arrow"), ("t.arrow", "truncated")),
    "rows in memory": Case(
        lambda w, f: {"embeddings": np.full((40, 6), np.nan)}, ("embeddings: 40 rows", "[0, 1, 2")
    ),
    "ragged lists in memory": Case(
        lambda w, f: {"embeddings": [[1.0], [1.0, 2.0]]}, ("embeddings", "array")
    ),
    "mixed objects in memory": Case(
        lambda w, f: {"identities": np.array(["a", 1] * 20, object)}, ("identities", "text")
    ),
    "none among objects in memory": Case(
        lambda w, f: {"identities": np.array(["a", None] * 20, object)},
        ("identities", "20 rows", "[1, 3, 5"),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_is_named_and_nothing_is_written(case: Case, tmp_path: Path) -> None:
    world = make_world()
    good = world.save(tmp_path / "in")
    given = good | case.spoil(world, tmp_path / "in")
    with pytest.raises(DatasetError) as caught:
        mine(**given, out=tmp_path / "out" / "deep")
    for part in case.told:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_earlier_round_outlives_every_fault(tmp_path: Path) -> None:
    world, out = make_world(), tmp_path / "out"
    good = world.save(tmp_path / "in")
    mine(**good, out=out)
    before = files_below(out)
    for number, case in enumerate(CASES.values()):
        folder = tmp_path / f"in-{number}"
        folder.mkdir()
        with pytest.raises(DatasetError):
            mine(**(good | case.spoil(world, folder)), out=out)
    assert files_below(out) == before
    assert RoundLog(out, must_exist=True).verify() == []


def test_a_tensor_that_requires_grad_is_told_what_to_pass() -> None:
    class Tensor:
        def __array__(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")

    with pytest.raises(DatasetError, match=r"embeddings: .*tensor\.detach\(\)\.cpu\(\)\.numpy\(\)"):
        mine(Tensor(), ["a", "a", "b", "b"])


def test_a_step_before_the_first_is_refused() -> None:
    world = make_world()
    with pytest.raises(ConfigError, match="model_step is -5"):
        mine(world.embeddings, world.identities, model_step=-5)
