"""Where the dataset lies and which of its columns mean what."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from miner.data.filters import parse_filter
from miner.errors import DatasetError

__all__ = ["DatasetConfig"]


class DatasetConfig(BaseModel):
    """The dataset and its columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(min_length=1)
    """File or folder of Parquet or Arrow IPC files: a path, or a URI such as s3://bucket/folder.
    No default: there is no dataset that suits everybody."""
    id_column: str = "sample_id"
    """Unique name of a sample, integer or string: what errors and reports call it by."""
    identity_column: str = "identity"
    """The class of a sample, integer or string: never both anchor's and negative's."""
    payload_columns: tuple[str, ...] = Field(default=("image",), min_length=1)
    """What the encoder's preprocessing reads. Just one by default: each is copied to the store."""
    filter: str | None = None
    """Rows to keep, e.g. ``split == "train"``; see `miner.data.filters`. None keeps every row."""
    format: Literal["auto", "parquet", "arrow"] = "auto"
    """``auto`` goes by each file's suffix, which is right unless files have none."""

    @field_validator("filter")
    @classmethod
    def _filter_parses(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                parse_filter(text)
            except DatasetError as exc:
                raise ValueError(str(exc)) from exc
        return text

    @model_validator(mode="after")
    def _payload_columns_are_usable(self) -> Self:
        if len(set(self.payload_columns)) < len(self.payload_columns):
            raise ValueError(f"payload_columns names a column twice: {self.payload_columns}")
        if "row_id" in self.payload_columns:
            raise ValueError("payload_columns may not hold 'row_id': the row store adds its own")
        return self
