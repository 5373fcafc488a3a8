"""The embedder without Ray."""

import dataclasses
import hashlib

import numpy as np
import pytest
import safetensors.torch
import torch

from miner.errors import (
    EncoderError,
    NonFiniteError,
    PoisonSampleError,
    SnapshotError,
    WeightsRefusedError,
)
from miner.workers.embed_worker import ChunkEmbedder
from miner.workers.snapshot import SnapshotStore


@pytest.fixture
def snapshots(tmp_path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots")


@pytest.fixture(params=[0, 2], ids=["decode in turn", "decode ahead"], autouse=True)
def decode_threads(request, monkeypatch) -> None:
    monkeypatch.setattr(f"{__name__}.DECODE_THREADS", request.param)


DECODE_THREADS = 0


def make(workshop, snapshots, **changes) -> ChunkEmbedder:
    encoder = workshop.encoder.model_copy(update=changes)
    return ChunkEmbedder(workshop.store, encoder, snapshots, DECODE_THREADS)


def embed_all(embedder: ChunkEmbedder, key) -> None:
    for chunk in range(key.num_chunks):
        embedder.embed_chunk(key, chunk)


def test_every_row_is_embedded_under_its_row_id(workshop, snapshots):
    embedder = make(workshop, snapshots)
    uri, sha256 = workshop.weights(1)
    embedder.load(uri, sha256)
    key = embedder.key(sha256, 16)
    embed_all(embedder, key)
    embeddings = snapshots.open(key)
    assert embeddings.shape == (100, 5)
    state = safetensors.torch.load_file(uri)
    vectors = np.random.default_rng(3).normal(size=(100, 7)).astype(np.float32)
    for row, vector in enumerate(torch.from_numpy(vectors)):
        hidden = torch.tanh(state["0.weight"] @ vector + state["0.bias"])
        expected = state["2.weight"] @ hidden + state["2.bias"]
        expected = (expected / expected.norm()).numpy()
        np.testing.assert_allclose(embeddings[row], expected, atol=1e-5)


def test_two_weights_of_one_encoder_never_share_a_chunk(workshop, snapshots):
    embedder = make(workshop, snapshots)
    embeddings = []
    for seed in (1, 2, 1):
        uri, sha256 = workshop.weights(seed)
        embedder.load(uri, sha256)
        key = embedder.key(sha256, 16)
        assert snapshots.missing_chunks(key) == ([] if len(embeddings) == 2 else list(range(7)))
        embed_all(embedder, key)
        embeddings.append(snapshots.open(key))
    assert np.array_equal(embeddings[0], embeddings[2])
    nearest = [np.argmax(part @ part.T - 2 * np.eye(100), axis=1) for part in embeddings[:2]]
    assert (nearest[0] != nearest[1]).mean() > 0.5


def test_a_chunk_is_refused_under_a_key_that_is_not_the_workers(workshop, snapshots):
    embedder = make(workshop, snapshots)
    (uri, sha256), (_, other) = workshop.weights(1), workshop.weights(2)
    key = embedder.key(sha256, 16)
    with pytest.raises(SnapshotError, match="another snapshot"):
        embedder.embed_chunk(key, 0)
    embedder.load(uri, sha256)
    for change in (
        {"weights_sha256": other},
        {"preprocessing_fingerprint": "old text"},
        {"dataset_fingerprint": "other rows"},
        {"num_rows": 99},
    ):
        with pytest.raises(SnapshotError, match="another snapshot"):
            embedder.embed_chunk(dataclasses.replace(key, **change), 0)
    assert snapshots.missing_chunks(key) == list(range(7))


@pytest.mark.parametrize("row", [32, 41, 47])
def test_a_poison_sample_is_named_after_few_attempts(workshop, snapshots, row):
    embedder = make(workshop, snapshots)
    uri, sha256 = workshop.weights(1)
    embedder.load(uri, sha256)
    workshop.trigger(row, "raise")
    message = rf"row {row} \(sample id 's{row:03d}'\) cannot be .* the sample is damaged"
    with pytest.raises(PoisonSampleError, match=message):
        embedder.embed_chunk(embedder.key(sha256, 16), 2)
    assert len(workshop.batches_begun()) <= 2 + 2 * 3, "two batches and 2 log2(8) attempts"


def test_non_finite_embeddings_are_named(workshop, snapshots):
    embedder = make(workshop, snapshots)
    uri, sha256 = workshop.weights(1)
    embedder.load(uri, sha256)
    workshop.trigger(41, "nan")
    workshop.trigger(45, "nan")
    key = embedder.key(sha256, 16)
    with pytest.raises(NonFiniteError, match=r"2 of 8 .* rows \[41, 45\]"):
        embedder.embed_chunk(key, 2)
    assert 2 in snapshots.missing_chunks(key)


def test_a_failure_of_whole_batches_is_no_poison_sample(workshop, snapshots):
    embedder = make(workshop, snapshots, encoder="tiny_encoder:NoBatches", batch_rows=2)
    uri, sha256 = save_state(workshop, {})
    embedder.load(uri, sha256)
    with pytest.raises(EncoderError, match=r"rows 16 to 17 fail together.*out of memory.*lower"):
        embedder.embed_chunk(embedder.key(sha256, 16), 1)


def test_a_rehearsal_notes_every_row_and_changes_no_byte(workshop, snapshots, monkeypatch):
    embedder = make(workshop, snapshots)
    uri, sha256 = workshop.weights(1)
    embedder.load(uri, sha256)
    key = embedder.key(sha256, 16)
    embedder.embed_chunk(key, 6)
    expected = snapshots.read_rows(key, 96, 100)
    noted = []
    note_rows = SnapshotStore.note_rows

    def watched(self, key, chunk, begin, end):
        noted.append((begin, end))
        note_rows(self, key, chunk, begin, end)

    monkeypatch.setattr(SnapshotStore, "note_rows", watched)
    assert embedder.embed_chunk(key, 6, rehearse=True) == 4
    assert np.array_equal(snapshots.read_rows(key, 96, 100), expected)
    assert noted == [(96, 97), (97, 98), (98, 99), (99, 100), (96, 100)]


def save_state(workshop, state: dict[str, torch.Tensor]) -> tuple[str, str]:
    blob = safetensors.torch.save(state)
    path = workshop.root / "weights" / "crafted"
    path.write_bytes(blob)
    return str(path), hashlib.sha256(blob).hexdigest()


def test_validation_embeds_one_row_of_each_identity_and_loads_nothing(workshop, snapshots):
    embedder = make(workshop, snapshots)
    uri, sha256 = workshop.weights(1)
    embedder.load(uri, sha256)
    key = embedder.key(sha256, 16)
    embedder.embed_chunk(key, 0)
    expected = snapshots.read_rows(key, 0, 16)
    workshop.calm()
    similarity = embedder.validate(*workshop.weights(2))
    assert -1 < similarity < 0.95
    # Ten identities, the first row of each, in batches of eight.
    lines = (workshop.triggers / "calls").read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [["0", "7"], ["8", "9"]]
    embedder.embed_chunk(key, 0)
    assert np.array_equal(snapshots.read_rows(key, 0, 16), expected)


def test_validation_refuses_bad_weights_with_a_reason(workshop, snapshots):
    embedder = make(workshop, snapshots)
    uri, _ = workshop.weights(1)
    good = safetensors.torch.load_file(uri)
    with pytest.raises(WeightsRefusedError, match="sha256"):
        embedder.validate(uri, "0" * 64)
    for change, message in (
        ({"2.weight": good["2.weight"] * 0, "2.bias": torch.ones(5)}, "have collapsed"),
        ({"0.bias": torch.full((16,), torch.nan)}, "has training diverged"),
        ({"0.bias": torch.zeros(3)}, r"0\.bias is float32 \[3\] and should be"),
    ):
        with pytest.raises(WeightsRefusedError, match=message):
            embedder.validate(*save_state(workshop, good | change))


def test_a_poison_sample_in_the_canary_is_not_blamed_on_the_weights(workshop, snapshots):
    workshop.trigger(9, "raise")
    with pytest.raises(PoisonSampleError, match=r"row 9 \(sample id 's009'\)"):
        make(workshop, snapshots).validate(*workshop.weights(1))


def test_the_rows_that_are_decoded_or_embedded_are_noted(
    workshop, snapshots, monkeypatch, decode_threads
):
    embedder, noted = make(workshop, snapshots), []
    uri, sha256 = workshop.weights(1)
    embedder.load(uri, sha256)
    monkeypatch.setattr(
        type(snapshots), "note_rows", lambda _, __, ___, *rows: noted.append(tuple(map(int, rows)))
    )
    embedder.embed_chunk(embedder.key(sha256, 48), 0)
    first = [0, 0, 0, 8, 16, 24] if DECODE_THREADS else [0, 8, 16, 24, 32, 40]
    assert noted == list(zip(first, [8, 16, 24, 32, 40, 48], strict=True))
