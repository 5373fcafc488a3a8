"""What the training loop asks of the miner, over a real socket."""

import hashlib
from pathlib import Path

import pytest

from tests.trainer.feed.served_miner import ServerThread, make_folder
from trainer.config import TrainerConfig
from trainer.miner_link import GrpcMiner


@pytest.mark.parametrize("upload_weights", [False, True])
def test_weights_are_announced_by_their_place_or_sent(tmp_path: Path, upload_weights: bool) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"weights of step 7")
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    miner = ServerThread(make_folder(tmp_path / "miner"))
    settings = {"address": miner.address, "patience_s": 10, "upload_weights": upload_weights}
    tree = {"run_id": "run", "out": tmp_path / "out", "steps": 9, "batch_rows": 24}
    config = TrainerConfig.model_validate({**tree, "miner": settings})
    try:
        assert not GrpcMiner(config).link().announce(7, str(weights), sha256)
    finally:
        miner.stop()
    ((step, uri, digest),) = miner.backend.announced
    assert (step, digest) == (7, sha256)
    assert (uri == str(weights)) == (not upload_weights)
    assert miner.backend.uploaded == ([weights.read_bytes()] if upload_weights else [])
