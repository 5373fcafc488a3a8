"""What a dataset's configuration refuses."""

from typing import Any

import pytest
from pydantic import ValidationError

from miner.data import DatasetConfig


def test_a_place_is_enough() -> None:
    config = DatasetConfig(uri="s3://bucket/faces")
    assert (config.id_column, config.identity_column) == ("sample_id", "identity")
    assert config.payload_columns == ("image",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uri": ""}, "at least 1 character"),
        ({"payload_columns": ()}, "at least 1 item"),
        ({"payload_columns": ("image", "image")}, "names a column twice"),
        ({"payload_columns": ("row_id",)}, "row store adds its own"),
        ({"filter": "split = 'train'"}, "cannot be read"),
        ({"format": "csv"}, "'auto', 'parquet' or 'arrow'"),
        ({"colunm": "x"}, "Extra inputs"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        DatasetConfig(**{"uri": "folder", **changes})
    assert caught.value.errors()[0]["loc"] in {(next(iter(changes)),), ()}
