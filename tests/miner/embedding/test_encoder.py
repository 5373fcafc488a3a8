import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from miner.embedding.config import EncoderConfig
from miner.embedding.encoder import BatchFailedError, build_module, load_encoder
from miner.embedding.entry_points import load_entry_point, preprocessing_fingerprint
from miner.errors import EncoderError, NonFiniteError


def vectors_of(batch: pa.RecordBatch) -> np.ndarray:
    return np.stack([np.frombuffer(v, np.float32) for v in batch.column("vector").to_pylist()])


def test_embeddings_are_the_modules_outputs_at_length_one(tiny_config, tiny_batch):
    encoder = load_encoder(tiny_config)
    embedded = encoder.embed(tiny_batch)
    assert embedded.dtype == np.float32
    assert embedded.shape == (30, 5)
    assert encoder.dim == 5
    with torch.no_grad():
        for row, vector in enumerate(vectors_of(tiny_batch)):
            expected = encoder.module(torch.from_numpy(vector)[None])[0].numpy()
            expected = expected / np.linalg.norm(expected)
            np.testing.assert_allclose(embedded[row], expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-6)


def test_dropout_and_batch_norm_are_in_evaluation_mode(tiny_config, tiny_batch):
    encoder = load_encoder(tiny_config)
    encoder.module.append(torch.nn.Dropout(0.5))
    encoder.module.eval()
    assert not any(module.training for module in encoder.module.modules())
    assert np.array_equal(encoder.embed(tiny_batch), encoder.embed(tiny_batch))


def test_lengths_of_large_outputs_do_not_overflow(tiny_config, tiny_batch):
    encoder = load_encoder(tiny_config)
    expected = encoder.embed(tiny_batch)
    with torch.no_grad():
        encoder.module[2].weight.mul_(1e25)
        encoder.module[2].bias.mul_(1e25)
    np.testing.assert_allclose(encoder.embed(tiny_batch), expected, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_embeddings_name_their_rows(tiny_config, tiny_batch, value):
    config = tiny_config.model_copy(update={"encoder": "tiny_encoder:Same"})
    vectors = vectors_of(tiny_batch)
    vectors[[4, 9], 2] = value
    batch = pa.record_batch(
        {"row_id": tiny_batch.column("row_id"), "vector": [row.tobytes() for row in vectors]}
    )
    with pytest.raises(NonFiniteError, match=r"2 of 30 .* rows \[104, 109\]"):
        load_encoder(config).embed(batch)


def test_an_embedding_of_zeros_has_no_direction_and_is_refused(tiny_config):
    config = tiny_config.model_copy(update={"encoder": "tiny_encoder:Same"})
    batch = pa.record_batch({"row_id": [8], "vector": [np.zeros(7, np.float32).tobytes()]})
    with pytest.raises(NonFiniteError, match=r"all zero, the first are rows \[8\]"):
        load_encoder(config).embed(batch)


@pytest.mark.parametrize(
    ("encoder", "preprocess", "message"),
    [
        ("Misshapen", "preprocess", r"encoder gave a torch.float32 tensor \[30\]"),
        ("Same", "preprocess_short", r"preprocess gave a torch.float32 tensor \[29, 7\].* 30 rows"),
        ("Same", "preprocess_list", "preprocess gave a list for a batch of 30 rows"),
    ],
)
def test_outputs_of_a_wrong_form_are_an_encoder_error(
    tiny_config, tiny_batch, encoder, preprocess, message
):
    config = tiny_config.model_copy(
        update={"encoder": f"tiny_encoder:{encoder}", "preprocess": f"tiny_encoder:{preprocess}"}
    )
    with pytest.raises(EncoderError, match=message) as caught:
        load_encoder(config).embed(tiny_batch)
    assert not isinstance(caught.value, BatchFailedError)


def test_the_number_of_dimensions_may_not_change(tiny_config, tiny_batch):
    config = tiny_config.model_copy(update={"encoder": "tiny_encoder:WideBatches"})
    encoder = load_encoder(config)
    encoder.embed(tiny_batch)
    with pytest.raises(EncoderError, match="20 dimensions after 30"):
        encoder.embed(tiny_batch.slice(0, 20))


def test_what_the_users_code_raises_is_told_apart_and_quoted(tiny_config, tiny_batch):
    batch = tiny_batch.rename_columns(["row_id", "other"])
    with pytest.raises(BatchFailedError, match=r"preprocess raised KeyError: .*vector"):
        load_encoder(tiny_config).embed(batch)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_encoder", "not of the form package.module:callable"),
        ("tiny_encoder:", "not of the form"),
        ("no_such_module:build", "does not import .*No module named 'no_such_module'"),
        ("tiny_encoder:no_such_name", "has no 'no_such_name'"),
        ("tiny_encoder:not_callable", "'not_callable' is of type int"),
    ],
)
def test_an_entry_point_that_does_not_load_says_why(tiny_config, name, message):
    with pytest.raises(EncoderError, match=message):
        load_entry_point(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "tiny_encoder:build_raising"}, "RuntimeError: no such backbone"),
        ({"encoder": "tiny_encoder:build_nothing"}, "gave a NoneType, it must give a torch.nn"),
        ({"encoder_args": {"depth": 3}}, "depth.* raised TypeError"),
    ],
)
def test_an_encoder_that_does_not_build_says_why(tiny_config, change, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder(tiny_config.model_copy(update=change))


def test_asking_for_a_gpu_that_is_not_there_is_refused(tiny_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EncoderError, match=r"workers\.gpus_per_worker"):
        load_encoder(tiny_config.model_copy(update={"device": "cuda"}))


def test_building_is_repeatable_and_leaves_the_global_generator_alone(tiny_config):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (build_module(tiny_config, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def write_module(path, text: str) -> EncoderConfig:
    path.write_text(text)
    return EncoderConfig(encoder=f"{path.stem}:build", preprocess=f"{path.stem}:preprocess")


def test_the_fingerprint_follows_text_names_arguments_and_columns(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "def build(): ...\ndef preprocess(batch): ...\nother = preprocess\n"
    config = write_module(tmp_path / "printed_encoder.py", text)
    fingerprint = preprocessing_fingerprint(config, ("image",))
    assert fingerprint == preprocessing_fingerprint(config, ("image",))
    others = [
        preprocessing_fingerprint(config, ("image", "text")),
        preprocessing_fingerprint(config.model_copy(update={"encoder_args": {"dim": 4}}), "image"),
        preprocessing_fingerprint(
            config.model_copy(update={"preprocess": "printed_encoder:other"}), ("image",)
        ),
        preprocessing_fingerprint(
            write_module(tmp_path / "printed_encoder.py", text + "# scaled by 2\n"), ("image",)
        ),
    ]
    assert len({fingerprint, *others}) == 5


def test_the_fingerprint_follows_the_module_that_defines_the_callable(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    inner = tmp_path / "inner_encoder.py"
    inner.write_text("def build(): ...\ndef preprocess(batch): ...\n")
    config = write_module(
        tmp_path / "outer_encoder.py", "from inner_encoder import build, preprocess\n"
    )
    before = preprocessing_fingerprint(config, ("image",))
    inner.write_text("def build(): ...\ndef preprocess(batch): return 2\n")
    assert preprocessing_fingerprint(config, ("image",)) != before


def test_unknown_and_impossible_settings_are_refused():
    for wrong in ({"batch_size": 1}, {"batch_rows": 0}, {"canary_rows": 1}, {"device": "tpu"}):
        with pytest.raises(ValidationError):
            EncoderConfig(**wrong)
