"""How the round log is cut into files, and how much of it is kept."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["RoundsConfig"]


class RoundsConfig(BaseModel):
    """Settings of the round log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunk_groups: int = Field(
        default=1024,
        ge=1,
        description="Groups in one chunk file. 1024 groups of 16 rows are some 500 KB: a damaged "
        "file is found and named closely, and a round is a handful of files.",
    )
    keep_rounds: int = Field(
        default=8,
        ge=2,
        description="Newest rounds to keep, beside those that a live run still needs. At least 2: "
        "a run may be planning on the newest while the next one is sealed.",
    )
    archive_uri: str | None = Field(
        default=None,
        description="Where rounds and run plans are kept beside the state folder, as "
        "`s3://bucket/folder`: a service that lost the folder goes on from there, and of two "
        "services one seals. The store must refuse to put an object over another. None: the "
        "folder alone, which then must outlive the machine.",
    )
