"""Settings of the index and of the search in it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["IndexConfig"]


class IndexConfig(BaseModel):
    """Which index answers the search for negatives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["flat"] = Field(
        default="flat",
        description="`flat` compares with every row, so the candidates are exact.",
    )
    search_block: int = Field(
        default=4096,
        ge=1,
        description="Queries per search. Large blocks are matrix products: 64 at a time is 4.6 "
        "times slower. Deep searches take fewer, so that their result lists stay small.",
    )
