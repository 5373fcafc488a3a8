"""A manifest reads back as it was written, or not at all."""

import hashlib
import json
from typing import Any

import pytest
from pydantic import ValidationError

from miner.rounds.manifest import ChunkEntry, RoundManifest, decode_manifest, encode_manifest
from tests.miner.rounds.round_samples import make_draft


def make_manifest(**changes: Any) -> RoundManifest:
    chunk = ChunkEntry(
        file="chunk-00000.arrow",
        first_group=0,
        num_groups=2,
        num_rows=9,
        num_bytes=99,
        sha256="a" * 64,
    )
    return RoundManifest(
        **make_draft(**changes).model_dump(),
        log_id="log",
        round_id=1,
        generation=1,
        num_groups=2,
        num_rows=9,
        num_triplets=3,
        chunks=(chunk,),
        previous_sha256="",
    )


def test_a_manifest_comes_back_with_the_digest_of_its_text() -> None:
    text = encode_manifest(make_manifest())
    back = decode_manifest(text)
    assert back.model_dump() == make_manifest().model_dump()
    assert back.sha256 == json.loads(text)["sha256"] != ""
    assert encode_manifest(back) == text


def test_every_flipped_bit_and_every_truncation_is_noticed() -> None:
    text = encode_manifest(make_manifest())
    for i in range(len(text)):
        damaged = bytearray(text)
        damaged[i] ^= 1 << (i % 8)
        with pytest.raises(ValueError, match=r"digest should be|end is missing"):
            decode_manifest(bytes(damaged))
        with pytest.raises(ValueError, match=r"digest should be|end is missing"):
            decode_manifest(text[:i])


def test_figures_that_json_lacks_become_null() -> None:
    back = decode_manifest(encode_manifest(make_manifest(selection={"mean": float("nan")})))
    assert back.selection == {"mean": None}


@pytest.mark.parametrize("field", ["recall", "created_unix_s"])
def test_a_draft_that_could_not_be_read_back_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        make_draft(**{field: float("nan")})


def test_a_manifest_of_another_schema_version_is_named_as_such() -> None:
    body = encode_manifest(make_manifest()).rsplit(b",\n", 1)[0]
    body = body.replace(b'"schema_version": 1', b'"schema_version": 2') + b"\n}"
    digest = hashlib.sha256(body).hexdigest()
    text = body[:-2] + f',\n "sha256": "{digest}"\n}}\n'.encode()
    with pytest.raises(ValueError, match="another version of this program"):
        decode_manifest(text)
