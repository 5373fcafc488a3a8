"""The filter language against plain Python on the same rows."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.data.filters import parse_filter
from miner.errors import DatasetError

ROWS = [
    {"split": split, "size": size, "score": score, "ok": ok}
    for split in ("train", "test", "it's")
    for size in (-2, 0, 7)
    for score in (0.5, 2.0)
    for ok in (True, False)
]


def kept(text: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = (
        pa.Table.from_pylist(rows).filter(parse_filter(text).expression).to_pylist()
    )
    return result


COMPARISONS = st.one_of(
    st.builds(
        "size {} {}".format,
        st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
        st.integers(-3, 8),
    ),
    st.builds("score > {}".format, st.sampled_from(["0.25", "1e0", "2"])),
    st.builds("ok == {}".format, st.booleans()),
    st.builds("split == {!r}".format, st.sampled_from(["train", "it's", "none"])),
    st.builds("split {} {!r}".format, st.just("not in"), st.just(["train", "none"])),
    st.builds("size in {!r}".format, st.just((7, -2))),
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("{} or {}".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=6,
)


@given(text=FILTERS)
def test_a_filter_keeps_the_rows_for_which_python_says_true(text: str) -> None:
    expected = [row for row in ROWS if eval(text, {}, dict(row))]
    assert kept(text, ROWS) == expected


def test_a_null_satisfies_neither_a_comparison_nor_its_negation() -> None:
    rows: list[dict[str, Any]] = [{"split": "a"}, {"split": "b"}, {"split": None}]
    for text in ('split == "a"', 'split in ["a"]'):
        assert kept(text, rows) == rows[:1]
        assert kept(f"not {text}", rows) == rows[1:2]
    assert kept('split not in ["a"]', rows) == kept('split != "a"', rows) == rows[1:2]


def test_a_filter_tells_which_columns_it_reads() -> None:
    text = 'b == 1 and (a in ["x"] or not b < 3) and c_2 == True'
    assert parse_filter(text).columns == ("b", "a", "c_2")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("split ==", "invalid syntax"),
        ("", "invalid syntax"),
        ("a == 1; b == 2", "invalid syntax"),
        ("split", "no comparison"),
        ("__import__('os').system('true')", "no comparison"),
        ("f(split) == 1", "begins with a column name"),
        ('"train" == split', "begins with a column name"),
        ("1 < size", "begins with a column name"),
        ("size == score", "a literal is"),
        ("size == None", "a literal is"),
        ("size == 1 + 1j", "a literal is"),
        (f"size == {2**80}", "a literal is"),
        ("size == f'{open(0)}'", "a literal is"),
        ("size in []", "needs a list"),
        ("size in split", "needs a list"),
        ("size in [[1]]", "a literal is"),
        ("size is 3", "known are =="),
        ("a < b < 3", "join them with 'and'"),
        ("not " * 60 + "a == 1", "nested more than 50 deep"),
        ("(" * 300 + "a" + ")" * 300, "cannot be read"),
        ("a == '\0'", "cannot be read"),
    ],
)
def test_other_text_is_refused_with_the_part_that_is_wrong(text: str, why: str) -> None:
    with pytest.raises(DatasetError, match="filter ") as caught:
        parse_filter(text)
    assert why in str(caught.value)
    assert "write for example" in str(caught.value)
