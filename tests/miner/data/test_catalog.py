"""The catalog against the rows as they were written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miner.data import Catalog, DatasetConfig, scan_catalog
from miner.errors import DatasetError

WriteFile = Callable[..., Path]
Configure = Callable[..., DatasetConfig]


def rows_of(catalog: Catalog) -> list[tuple[Any, Any]]:
    """(sample id, identity name) of each row, by the catalog's own numbers."""
    names = catalog.identity_names.to_pylist()
    identities = [names[i] for i in catalog.identities.identity_ids_N.tolist()]
    return list(zip(catalog.sample_ids.to_pylist(), identities, strict=True))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    identities=st.lists(st.sampled_from(["b", "a", "é", "z", "B"]), min_size=28, max_size=28),
    suffixes=st.lists(st.sampled_from([".parquet", ".arrow"]), min_size=4, max_size=4),
)
def test_rows_are_numbered_by_sorted_file_then_order_and_identities_by_name(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    identities: list[str],
    suffixes: list[str],
) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    expected: list[tuple[str, str]] = []
    for number, size in enumerate(sizes):
        rows = [(f"{number}-{i}", identities[7 * number + i]) for i in range(size)]
        table = pa.table(
            {
                "sample_id": pa.array([row[0] for row in rows], pa.string()),
                "identity": pa.array([row[1] for row in rows], pa.string()),
                "image": pa.array([b""] * size, pa.binary()),
            }
        )
        if suffixes[number] == ".parquet":
            pq.write_table(table, folder / f"{number}.parquet", row_group_size=2)
        else:
            with pa.ipc.new_file(folder / f"{number}.arrow", table.schema) as writer:
                writer.write_table(table, max_chunksize=3)
        expected += rows
    counts = {name: sum(row[1] == name for row in expected) for _, name in expected}
    if len(counts) < 2 or max(counts.values()) < 2:
        with pytest.raises(DatasetError):
            scan_catalog(DatasetConfig(uri=str(folder)))
        return
    catalog = scan_catalog(DatasetConfig(uri=str(folder)))
    assert rows_of(catalog) == expected
    assert catalog.num_rows == len(expected)
    assert catalog.identity_names.to_pylist() == sorted(counts, key=lambda name: name.encode())
    assert [file.num_rows for file in catalog.files] == sizes
    for identity_id, name in enumerate(catalog.identity_names.to_pylist()):
        expected_rows = [row for row, pair in enumerate(expected) if pair[1] == name]
        assert catalog.identities.rows_of(identity_id).tolist() == expected_rows


def test_integer_and_encoded_columns_give_the_same_catalog_as_plain_ones(
    write_file: WriteFile, configure: Configure
) -> None:
    write_file("a.parquet", pa.array([10, 7], pa.int16()), pa.array(["x", "y"], pa.large_string()))
    write_file("b.parquet", pa.array([3, 4], pa.uint8()), pa.array(["y", "x"]).dictionary_encode())
    catalog = scan_catalog(configure())
    assert rows_of(catalog) == [(10, "x"), (7, "y"), (3, "y"), (4, "x")]
    assert catalog.sample_ids.type == pa.int64()
    assert catalog.identity_names.type == pa.string()
    assert catalog.identities.identity_ids_N.dtype == np.int32


def test_integer_identities_are_ordered_as_numbers(
    write_file: WriteFile, configure: Configure
) -> None:
    write_file("a.parquet", ["a", "b", "c"], [10, 9, 10])
    assert scan_catalog(configure()).identity_names.to_pylist() == [9, 10]


def test_the_filter_decides_which_rows_exist(write_file: WriteFile, configure: Configure) -> None:
    write_file(
        "a.parquet",
        list("abcdef"),
        list("xyxyzz"),
        size=[1, 9, 9, None, 9, 9],
        split=list("uuuuuv"),
    )
    write_file("b.arrow", ["g", "h"], ["x", None], size=[9, 1], split=["u", "u"])
    catalog = scan_catalog(configure(filter='size > 5 and split == "u"'))
    assert rows_of(catalog) == [("b", "y"), ("c", "x"), ("e", "z"), ("g", "x")]
    assert [(file.name, file.num_rows) for file in catalog.files] == [
        ("a.parquet", 3),
        ("b.arrow", 1),
    ]


def test_payload_is_never_read(write_file: WriteFile, configure: Configure) -> None:
    path = write_file("a.parquet", ["a", "b", "c"], ["x", "x", "y"], image=["7" * 5000] * 3)
    data = path.read_bytes()
    first = pq.ParquetFile(path).metadata.row_group(0).column(2)
    begin = first.dictionary_page_offset or first.data_page_offset
    path.write_bytes(
        data[:begin]
        + b"\xff" * first.total_compressed_size
        + data[begin + first.total_compressed_size :]
    )
    assert scan_catalog(configure()).num_rows == 3
    with pytest.raises(DatasetError, match=r"a\.parquet cannot be read"):
        scan_catalog(configure(identity_column="image"))


def test_hidden_files_and_other_suffixes_are_no_data(
    folder: Path, write_file: WriteFile, configure: Configure
) -> None:
    write_file("part/b.parquet", ["c"], ["y"])
    write_file("a.parquet", ["a", "b"], ["x", "x"])
    for name in ("_tmp/c.parquet", ".old.parquet", "part/_d.parquet"):
        write_file(name, ["a"], ["x"])
    (folder / "README.md").write_text("notes")
    (folder / "_SUCCESS").touch()
    catalog = scan_catalog(configure())
    assert [file.name for file in catalog.files] == ["a.parquet", "part/b.parquet"]
    assert rows_of(catalog) == [("a", "x"), ("b", "x"), ("c", "y")]


def test_a_file_a_folder_and_a_uri_of_it_are_one_dataset(
    folder: Path, write_file: WriteFile, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_file("a.parquet", list("abc"), list("xxy"))
    monkeypatch.chdir(folder.parent)
    places = (
        str(folder),
        str(path),
        path.as_uri(),
        folder.as_uri(),
        "dataset",
        "dataset/a.parquet",
    )
    assert len({scan_catalog(configure(uri=place)).fingerprint for place in places}) == 1


def test_a_format_by_name_opens_a_file_of_any_suffix(
    folder: Path, write_file: WriteFile, configure: Configure
) -> None:
    path = write_file("a.arrow", list("abc"), list("xxy")).rename(folder / "data")
    assert scan_catalog(configure(uri=str(path), format="arrow")).num_rows == 3
    with pytest.raises(DatasetError, match=r"holds no data file of format auto.*dataset\.format"):
        scan_catalog(configure(uri=str(path)))
    write_file("b.parquet", list("abc"), list("xxy"))
    write_file("c.arrow", list("de"), list("zz"))
    assert scan_catalog(configure(format="parquet")).num_rows == 3


def test_the_fingerprint_follows_the_data_and_not_the_place(
    folder: Path, tmp_path: Path, write_file: WriteFile, configure: Configure
) -> None:
    path = write_file("a.parquet", list("abcd"), list("xxyy"), other=[b"1"] * 4)
    base = scan_catalog(configure())
    assert base.fingerprint == scan_catalog(configure()).fingerprint
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert scan_catalog(configure(uri=str(moved))).fingerprint == base.fingerprint

    seen = {base.fingerprint, scan_catalog(configure(payload_columns=("other",))).fingerprint}
    seen.add(scan_catalog(configure(filter='sample_id != "d"')).fingerprint)
    size = path.stat().st_size
    for ids, identities in ((list("abce"), list("xxyy")), (list("abcd"), list("xyxy"))):
        write_file("a.parquet", ids, identities, other=[b"1"] * 4)
        assert path.stat().st_size == size
        seen.add(scan_catalog(configure()).fingerprint)
    write_file("a.parquet", list("abcd"), list("xxyy"), other=[b"1"] * 4)
    path.rename(folder / "b.parquet")
    seen.add(scan_catalog(configure()).fingerprint)
    assert len(seen) == 6


def test_a_missing_place_or_scheme_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere does not exist; check dataset\.uri"):
        scan_catalog(DatasetConfig(uri=str(tmp_path / "nowhere")))
    with pytest.raises(DatasetError, match=r"'ftp://host/x' cannot be opened.*s3://"):
        scan_catalog(DatasetConfig(uri="ftp://host/x"))


def test_an_empty_dataset_is_refused_whether_by_files_rows_or_filter(
    write_file: WriteFile, configure: Configure
) -> None:
    with pytest.raises(DatasetError, match=r"holds no data file.*\.parquet"):
        scan_catalog(configure())
    none = pa.array([], pa.string())
    write_file("a.parquet", none, none, image=pa.array([], pa.binary()))
    with pytest.raises(DatasetError, match=r"is empty: its 1 files hold no row$"):
        scan_catalog(configure())
    write_file("b.parquet", list("ab"), list("xx"))
    with pytest.raises(DatasetError, match="its 2 files hold no row that passes the filter 'ident"):
        scan_catalog(configure(filter='identity == "q"'))


@pytest.mark.parametrize("role", ["id_column", "identity_column"])
def test_a_null_id_or_identity_is_placed_by_file_column_and_row(
    write_file: WriteFile, configure: Configure, role: str
) -> None:
    write_file("a.parquet", list("ab"), list("xx"), key=["k0", "k1"], use=[1, 1])
    write_file(
        "b.parquet", list("cdefgh"), list("xxxxxx"), key=[None, "k", *[None] * 4], use=[0, *[1] * 5]
    )
    message = r"b\.parquet: column 'key' is null in 5 rows, the first are \[0, 2, 3\]"
    with pytest.raises(DatasetError, match=message):
        scan_catalog(configure(**{role: "key"}))
    message = r"b\.parquet: column 'key' is null in 4 rows, the first are \[2, 3, 4\]"
    with pytest.raises(DatasetError, match=message):
        scan_catalog(configure(filter="use == 1", **{role: "key"}))


def test_duplicate_ids_are_placed_within_and_over_files(
    write_file: WriteFile, configure: Configure
) -> None:
    write_file("a.parquet", list("apqb"), list("xxyy"), use=[1, 0, 1, 1])
    write_file("b.parquet", list("bcc"), list("xxy"), use=[1, 1, 1])
    with pytest.raises(DatasetError, match="column 'sample_id' holds 2 ids more than once") as got:
        scan_catalog(configure(filter="use == 1"))
    assert "'b' in " in str(got.value)
    assert "a.parquet row 3 and " in str(got.value)
    assert "b.parquet row 0; 'c' in " in str(got.value)
    assert "b.parquet row 1 and " in str(got.value)


def test_a_dataset_without_positive_or_negative_is_refused(
    write_file: WriteFile, configure: Configure
) -> None:
    write_file("a.parquet", list("abc"), list("xxx"), one=["x", "y", "z"])
    with pytest.raises(DatasetError, match="one identity only, 'x' in all 3 rows"):
        scan_catalog(configure())
    with pytest.raises(DatasetError, match=r"no identity with two samples: 3 identities.*'x', 'y'"):
        scan_catalog(configure(identity_column="one"))


@pytest.mark.parametrize("role", ["id_column", "identity_column", "payload_columns", "filter"])
def test_a_missing_column_is_named_with_the_file_and_its_columns(
    write_file: WriteFile, configure: Configure, role: str
) -> None:
    write_file("a.parquet", list("abc"), list("xxy"), pose=[1, 2, 3])
    write_file("b.parquet", list("de"), list("xx"))
    value = {"payload_columns": ("pose",), "filter": "pose < 3"}.get(role, "pose")
    with pytest.raises(DatasetError, match=r"b\.parquet has no column 'pose', it has \['sample_id"):
        scan_catalog(configure(**{role: value}))


def test_a_column_of_a_wrong_or_changing_type_is_refused(
    write_file: WriteFile, configure: Configure
) -> None:
    write_file("a.parquet", list("abc"), list("xxy"), score=[0.5, 1.0, 2.0], mixed=[1, 2, 3])
    with pytest.raises(DatasetError, match=r"a\.parquet: column 'score' is of type double"):
        scan_catalog(configure(identity_column="score"))
    write_file("b.parquet", list("de"), list("xx"), score=[1.0, 2.0], mixed=["4", "5"])
    for role, value in (("id_column", "mixed"), ("payload_columns", ("mixed",))):
        with pytest.raises(
            DatasetError,
            match=r"column 'mixed' is string in file .*b\.parquet but int64 in file .*a\.parquet",
        ):
            scan_catalog(configure(**{role: value}))


def test_a_column_named_twice_is_refused(folder: Path, configure: Configure) -> None:
    schema = pa.schema(
        [(name, pa.string()) for name in ("sample_id", "identity", "image", "image")]
    )
    table = pa.Table.from_arrays([pa.array(["a", "b"])] * 4, schema=schema)
    pq.write_table(table, folder / "a.parquet")
    with pytest.raises(DatasetError, match=r"a\.parquet has column 'image' more than once"):
        scan_catalog(configure())


def test_an_id_beyond_int64_is_refused(write_file: WriteFile, configure: Configure) -> None:
    write_file("a.parquet", pa.array([1, 2**63], pa.uint64()), list("xx"))
    with pytest.raises(DatasetError, match=r"a\.parquet: column 'sample_id' does not fit int64"):
        scan_catalog(configure())


def test_a_filter_of_another_type_than_its_column_is_refused(
    write_file: WriteFile, configure: Configure
) -> None:
    write_file("a.parquet", list("abc"), list("xxy"), pose=[1, 2, 3])
    with pytest.raises(
        DatasetError, match=r"filter .* does not fit file .*a\.parquet.*pose: int64"
    ):
        scan_catalog(configure(filter='pose == "left"'))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("damage", ["empty", "half", "text", "middle"])
def test_an_unreadable_or_truncated_file_is_named(
    write_file: WriteFile, configure: Configure, suffix: str, damage: str
) -> None:
    write_file("a.parquet", list("abc"), list("xxy"))
    path = write_file(f"b{suffix}", [f"id {i}" for i in range(500)], ["x"] * 500)
    data = path.read_bytes()
    middle = data[:8] + b"\xff" * (len(data) // 2) + data[8 + len(data) // 2 :]
    path.write_bytes(
        {
            "empty": b"",
            "half": data[: len(data) // 2],
            "text": b"id,identity\n" * 99,
            "middle": middle,
        }[damage]
    )
    with pytest.raises(DatasetError, match=rf"file .*b\{suffix} cannot be read.*take it out"):
        scan_catalog(configure())
