"""What is written about a round: how it was made, its files, and their digests.

The manifest's text ends in its own digest, so that damage to the manifest itself is seen; each
manifest names the digest of the one before it, so that rounds form a chain.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError

__all__ = ["ChunkEntry", "RoundDraft", "RoundManifest", "decode_manifest", "encode_manifest"]

_TRAILER = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n\Z')


class RoundDraft(BaseModel):
    """What the miner tells of a round when it hands it over to be sealed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_step: int = Field(ge=0, description="Optimizer step of the weights; 0 without weights.")
    weights_sha256: str = Field(description="Digest of the weights; empty: made without any.")
    warmup_steps: int | None = Field(
        default=None,
        ge=0,
        description="For a random round that stands in for mined ones: up to which step it is as "
        "good as fresh. None for any other round.",
    )
    dataset_fingerprint: str = Field(description="Of the catalog whose row ids are used.")
    strategy: str = Field(description="Name of the strategy that made the groups.")
    config: dict[str, JsonValue] = Field(description="The selection's settings.")
    seed: int = Field(ge=0, description="Keys the selection's draws.")
    index: dict[str, JsonValue] = Field(description="Description of the index; empty: no search.")
    recall: FiniteFloat | None = Field(
        description="Measured recall of the search; None: not measured."
    )
    selection: dict[str, JsonValue] = Field(description="The selection's report.")
    phases_s: dict[str, FiniteFloat] = Field(description="Seconds that each phase of mining took.")
    created_unix_s: FiniteFloat = Field(
        description="When the mining ended, seconds since 1970 in UTC."
    )


class ChunkEntry(BaseModel):
    """One chunk file of a round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    first_group: int = Field(ge=0)
    num_groups: int = Field(ge=1)
    num_rows: int = Field(ge=0)
    num_bytes: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class RoundManifest(RoundDraft):
    """The whole record of a sealed round."""

    schema_version: Literal[1] = 1
    log_id: str = Field(description="Of the log in which the round was sealed.")
    round_id: int = Field(ge=1)
    generation: int = Field(ge=1, description="Of the writer that sealed the round.")
    num_groups: int = Field(ge=1)
    num_rows: int = Field(ge=0)
    num_triplets: int = Field(ge=0)
    chunks: tuple[ChunkEntry, ...]
    previous_sha256: str = Field(description="Digest of the manifest before; empty: the first.")
    sha256: str = Field(
        default="", exclude=True, description="Digest of this manifest's text without this field."
    )


def encode_manifest(manifest: RoundManifest) -> bytes:
    """The text of a manifest, readable JSON; NaN and infinity become null."""
    body = manifest.model_dump_json(indent=1).encode()
    digest = hashlib.sha256(body).hexdigest()
    return body.removesuffix(b"\n}") + f',\n "sha256": "{digest}"\n}}\n'.encode()


def decode_manifest(text: bytes) -> RoundManifest:
    """The manifest of a text, exactly as it was encoded.

    Raises:
        ValueError: If a single byte is not as written, or the schema version is unknown.
    """
    trailer = _TRAILER.search(text)
    if trailer is None:
        raise ValueError(f"the manifest's end is missing ({len(text)} bytes are there)")
    found = hashlib.sha256(text[: trailer.start()] + b"\n}").hexdigest()
    if found != trailer[1].decode():
        raise ValueError(f"its digest should be {trailer[1].decode()}, it is {found}")
    try:
        return RoundManifest.model_validate_json(text)
    except ValidationError as exc:
        raise ValueError(f"it was written by another version of this program: {exc}") from exc
