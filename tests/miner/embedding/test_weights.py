import hashlib
import os
import pickle

import pytest
import safetensors.torch
import torch

from miner.embedding.canary import check_canary
from miner.embedding.encoder import build_module, load_encoder
from miner.embedding.weights import fetch_weights, initial_weights, load_weights
from miner.errors import WeightsRefusedError


def sha256_of(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def save(tensors: dict[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})


@pytest.fixture
def state(tiny_config) -> dict[str, torch.Tensor]:
    return dict(build_module(tiny_config, seed=9).state_dict())


def test_initial_weights_load_again_and_follow_their_seed(tiny_config, tmp_path):
    folder = tmp_path / "weights"
    digests = [initial_weights(tiny_config, folder / f"{i}.safetensors", i // 2) for i in range(3)]
    assert digests[0] == digests[1] != digests[2]
    assert sorted(path.name for path in folder.iterdir()) == [f"{i}.safetensors" for i in range(3)]
    blob = fetch_weights(str(folder / "2.safetensors"), digests[2], tiny_config)
    module = build_module(tiny_config, seed=77)
    load_weights(module, blob)
    expected = build_module(tiny_config, seed=1).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("as_uri", [False, True])
def test_weights_under_a_prefix_are_read(tiny_config, tmp_path, as_uri):
    path = tmp_path / "weights" / "run a" / "step 5"
    path.parent.mkdir()
    path.write_bytes(b"some weights")
    uri = path.as_uri() if as_uri else str(path)
    assert fetch_weights(uri, sha256_of(b"some weights").upper(), tiny_config) == b"some weights"


def test_a_wrong_digest_is_refused_with_both_digests(tiny_config, tmp_path):
    path = tmp_path / "weights" / "w"
    path.write_bytes(b"new")
    with pytest.raises(WeightsRefusedError) as caught:
        fetch_weights(str(path), sha256_of(b"old"), tiny_config)
    assert sha256_of(b"old") in str(caught.value)
    assert sha256_of(b"new") in str(caught.value)


def test_paths_outside_the_prefixes_are_refused_however_they_are_spelt(tiny_config, tmp_path):
    outside = tmp_path / "secret"
    outside.write_bytes(b"secret")
    inside = tmp_path / "weights"
    (tmp_path / "weights2").mkdir()
    (tmp_path / "weights2" / "w").write_bytes(b"secret")
    (inside / "link").symlink_to(outside)
    (inside / "folder").symlink_to(tmp_path)
    digest = sha256_of(b"secret")
    for uri in (
        str(outside),
        f"{inside}/../secret",
        outside.as_uri(),
        f"file://{inside}/%2e%2e/secret",
        str(tmp_path / "weights2" / "w"),
        str(inside / "link"),
        str(inside / "folder" / "secret"),
    ):
        with pytest.raises(WeightsRefusedError, match="weights_prefixes allows"):
            fetch_weights(uri, digest, tiny_config)


def test_a_link_that_is_put_there_after_the_check_is_not_followed(
    tiny_config, tmp_path, monkeypatch
):
    (tmp_path / "secret").write_bytes(b"secret")
    path, open_file = tmp_path / "weights" / "w", os.open
    path.write_bytes(b"x")

    def swapped(*arguments, **options):
        path.unlink()
        path.symlink_to(tmp_path / "secret")
        return open_file(*arguments, **options)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(WeightsRefusedError, match="cannot be read"):
        fetch_weights(str(path), sha256_of(b"secret"), tiny_config)


def test_a_folder_that_a_link_replaces_after_the_check_is_not_gone_through(
    tiny_config, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "elsewhere" / "b"
    elsewhere.mkdir(parents=True)
    (elsewhere / "w").write_bytes(b"secret")
    folder = tmp_path / "weights" / "a"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "w").write_bytes(b"x")
    realpath = os.path.realpath

    def then_replaced(path):
        resolved = realpath(path)
        if path == str(folder / "b" / "w"):
            folder.rename(tmp_path / "moved")
            folder.symlink_to(elsewhere.parent)
        return resolved

    monkeypatch.setattr(os.path, "realpath", then_replaced)
    with pytest.raises(WeightsRefusedError, match="cannot be read: Not a directory"):
        fetch_weights(str(folder / "b" / "w"), sha256_of(b"secret"), tiny_config)


def test_a_file_above_the_limit_is_refused_before_it_is_read(tiny_config, tmp_path, monkeypatch):
    path = tmp_path / "weights" / "w"
    with path.open("wb") as file:
        file.truncate(2**40)  # a terabyte of nothing, on no disk
    with pytest.raises(WeightsRefusedError, match=r"1099511627776 bytes.*max_weights_bytes"):
        fetch_weights(str(path), "0" * 64, tiny_config)
    monkeypatch.setattr("pyarrow.fs.FileSystem", FakeBucket(tmp_path))
    config = tiny_config.model_copy(update={"weights_prefixes": ("s3://weights",)})
    with pytest.raises(WeightsRefusedError, match=r"1099511627776 bytes.*max_weights_bytes"):
        fetch_weights("s3://weights/w", "0" * 64, config)


def test_refusals_show_no_secret_of_a_prefix(tiny_config):
    prefixes = ("s3://key:secret@bucket/runs?endpoint_override=secret", "gs://other/runs#secret")
    config = tiny_config.model_copy(update={"weights_prefixes": prefixes})
    for uri in ("/etc/passwd", "s3://key:secret@elsewhere/w", "s3://bucket/w?token=secret"):
        with pytest.raises(WeightsRefusedError) as caught:
            fetch_weights(uri, "0" * 64, config)
        assert "secret" not in str(caught.value)
    with pytest.raises(WeightsRefusedError, match=r"\(s3://bucket/runs, gs://other/runs\)"):
        fetch_weights("/etc/passwd", "0" * 64, config)
    options = ("s3://bucket/runs?no_such_option=secret",)
    config = tiny_config.model_copy(update={"weights_prefixes": options})
    with pytest.raises(WeightsRefusedError, match="file system cannot be opened") as caught:
        fetch_weights("s3://bucket/runs/w", "0" * 64, config)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("steps", ["..", "../..", "a/../..", "./../weights/.."])
def test_no_detour_leaves_a_prefix(tiny_config, tmp_path, steps):
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path.parent / "secret").write_bytes(b"secret")
    (tmp_path / "weights" / "a").mkdir()
    inside = tmp_path / "weights"
    for uri in (f"{inside}/{steps}/secret", f"file://localhost{inside}/{steps}/secret"):
        with pytest.raises(WeightsRefusedError, match="weights_prefixes allows"):
            fetch_weights(uri, sha256_of(b"secret"), tiny_config)


def test_a_prefix_may_itself_be_reached_through_a_link(tiny_config, tmp_path):
    (tmp_path / "weights" / "w").write_bytes(b"x")
    (tmp_path / "alias").symlink_to(tmp_path / "weights")
    config = tiny_config.model_copy(update={"weights_prefixes": (str(tmp_path / "alias"),)})
    assert fetch_weights(str(tmp_path / "alias" / "w"), sha256_of(b"x"), config) == b"x"
    assert fetch_weights(str(tmp_path / "weights" / "w"), sha256_of(b"x"), config) == b"x"


def test_without_prefixes_nothing_is_accepted(tiny_config, tmp_path):
    (tmp_path / "weights" / "w").write_bytes(b"x")
    config = tiny_config.model_copy(update={"weights_prefixes": ()})
    with pytest.raises(WeightsRefusedError, match=r"allows \(nowhere\)"):
        fetch_weights(str(tmp_path / "weights" / "w"), sha256_of(b"x"), config)


@pytest.mark.parametrize("uri", ["weights/w", "", "file://elsewhere/w", "/a\0b"])
def test_places_that_are_no_absolute_path_of_this_machine_are_refused(tiny_config, uri):
    with pytest.raises(WeightsRefusedError):
        fetch_weights(uri, "0" * 64, tiny_config)


def test_what_is_not_a_readable_file_is_refused_at_once(tiny_config, tmp_path):
    folder = tmp_path / "weights"
    os.mkfifo(folder / "pipe")
    with pytest.raises(WeightsRefusedError, match="not a regular file"):
        fetch_weights(str(folder / "pipe"), "0" * 64, tiny_config)
    with pytest.raises(WeightsRefusedError, match="cannot be read: No such file"):
        fetch_weights(str(folder / "gone"), "0" * 64, tiny_config)
    with pytest.raises(WeightsRefusedError, match="cannot be read: Is a directory"):
        fetch_weights(str(folder), "0" * 64, tiny_config)


class FakeBucket:
    """Stands for `pyarrow.fs.FileSystem`: s3://bucket is a local folder."""

    def __init__(self, root) -> None:
        self.root, self.opened = root, []

    def from_uri(self, uri: str):
        import pyarrow.fs as pafs

        self.opened.append(uri)
        path = uri.removeprefix("s3://").partition("?")[0]
        return pafs.SubTreeFileSystem(str(self.root), pafs.LocalFileSystem()), path


def test_remote_weights_are_read_with_the_operators_options_only(
    tiny_config, tmp_path, monkeypatch
):
    bucket = FakeBucket(tmp_path)
    (tmp_path / "bucket" / "runs").mkdir(parents=True)
    (tmp_path / "bucket" / "runs" / "w").write_bytes(b"x")
    monkeypatch.setattr("pyarrow.fs.FileSystem", bucket)
    prefixes = ("s3://bucket/runs?region=eu-west-1",)
    config = tiny_config.model_copy(update={"weights_prefixes": prefixes})
    assert fetch_weights("s3://bucket/runs/w", sha256_of(b"x"), config) == b"x"
    assert bucket.opened == ["s3://bucket/runs/w?region=eu-west-1"]
    for uri in (
        "s3://bucket/runs/w?endpoint_override=http://elsewhere",
        "s3://bucket/runs/../w",
        "s3://bucket/runs/%2e%2e/w",
        "s3://bucket/runs-of-others/w",
        "s3://key:secret@bucket/runs/w",
        "gs://bucket/runs/w",
        "s3://bucket/runs",
    ):
        with pytest.raises(WeightsRefusedError):
            fetch_weights(uri, sha256_of(b"x"), config)
    with pytest.raises(WeightsRefusedError, match="cannot be read"):
        fetch_weights("s3://bucket/runs/gone", sha256_of(b"x"), config)
    assert len(bucket.opened) == 2, "refused places are not even opened"


def test_missing_and_unexpected_tensors_are_named_and_nothing_is_loaded(tiny_config, state):
    module = build_module(tiny_config)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state["extra.scale"] = state.pop("0.bias")
    with pytest.raises(WeightsRefusedError, match=r"first: 0\.bias\), 1 .*first: extra\.scale"):
        load_weights(module, save(state))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_wrapped_modules_state_is_explained(tiny_config, state):
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    with pytest.raises(WeightsRefusedError, match=r"without 'module\.' before the names"):
        load_weights(build_module(tiny_config), save(wrapped))


def test_a_misshaped_tensor_is_refused_with_both_shapes(tiny_config, state):
    state["2.weight"] = torch.zeros(3, 16)
    with pytest.raises(
        WeightsRefusedError, match=r"2\.weight is float32 \[3, 16\] and should be float32 \[5, 16\]"
    ):
        load_weights(build_module(tiny_config), save(state))


def test_another_element_type_is_refused(tiny_config, state):
    state["0.bias"] = state["0.bias"].half()
    with pytest.raises(WeightsRefusedError, match=r"0\.bias is float16 \[16\] and should be float"):
        load_weights(build_module(tiny_config), save(state))


def test_pickles_are_refused_unread(tiny_config, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"0.weight": torch.zeros(1)}, tmp_path / "saved")
    for blob in (pickle.dumps(Trap()), (tmp_path / "saved").read_bytes()):
        with pytest.raises(WeightsRefusedError, match="are a pickle"):
            load_weights(build_module(tiny_config), blob)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("cut", [0, 4, 60, -1])
def test_truncated_weights_are_refused(tiny_config, state, cut):
    with pytest.raises(WeightsRefusedError, match="not a safetensors file"):
        load_weights(build_module(tiny_config), save(state)[:cut])


def test_a_header_that_begins_like_a_pickle_is_no_pickle(tiny_config, state):
    # The first byte is the low byte of the header's length: pad the header until it is 0x80.
    for padding in range(256):
        blob = safetensors.torch.save(state, metadata={"padding": "x" * padding})
        if blob[0] == 0x80:
            break
    assert blob.startswith(b"\x80")
    load_weights(build_module(tiny_config), blob)


def test_the_canary_measures_the_mean_similarity_of_all_pairs(tiny_config, tiny_batch):
    encoder = load_encoder(tiny_config)
    rows = encoder.embed(tiny_batch)
    pairs = [float(rows[i] @ rows[j]) for i in range(30) for j in range(i)]
    measured = check_canary(encoder, tiny_batch, tiny_config)
    assert measured == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_a_collapsed_canary_is_refused_with_the_figure_and_the_limit(tiny_config, tiny_batch):
    encoder = load_encoder(tiny_config)
    with torch.no_grad():
        encoder.module[2].weight.mul_(0.01)
        encoder.module[2].bias.fill_(1)
    with pytest.raises(WeightsRefusedError, match=r"1\.0000 similar, .*similarity is 0\.95"):
        check_canary(encoder, tiny_batch, tiny_config)


def test_a_canary_of_nan_is_refused(tiny_config, tiny_batch):
    encoder = load_encoder(tiny_config)
    with torch.no_grad():
        encoder.module[0].weight[0, 0] = torch.nan
    with pytest.raises(WeightsRefusedError, match=r"do not embed the canary: .* rows "):
        check_canary(encoder, tiny_batch, tiny_config)
