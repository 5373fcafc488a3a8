"""P3 and P6 with an archive: the state folder is gone, and a resumed trainer does not notice."""

import shutil
from pathlib import Path

import pytest

from miner.app.demo.processes import ProcessFailedError
from miner.embedding.config import EncoderConfig
from miner.embedding.weights import initial_weights
from miner.rounds import RoundLog
from tests.integration.loop import Loop, wait_until
from tests.miner.rounds.loopback_s3 import UnsteadyS3
from trainer.feed import MinerClient, TripletBatch, TripletFeed

pytestmark = pytest.mark.timeout(240)


def read(loop: Loop, first_step: int, num_steps: int) -> list[TripletBatch]:
    feed = TripletFeed(
        loop.address,
        run_id="run",
        batch_rows=64,
        first_step=first_step,
        num_steps=num_steps,
        patience_s=30,
    )
    with feed:
        return list(feed)


@pytest.mark.long
def test_a_head_that_lost_its_folder_serves_every_step_as_before(
    loop: Loop, s3: UnsteadyS3, folder: str
) -> None:
    loop.archive_uri = s3.place(folder)
    loop.out.mkdir()
    weights = loop.out / "weights.safetensors"
    sha256 = initial_weights(EncoderConfig(encoder_args={"width": 8}), weights, seed=3)
    with loop.miner("first"), MinerClient(loop.address, patience_s=30) as client:
        told = read(loop, 0, 10)
        client.announce(step=50, uri=str(weights), sha256=sha256)
        wait_until(lambda: len(client.status().rounds) == 2, "round of the weights")
        told += read(loop, 10, 10)
        client.commit("run", 6)
        loop.kill_miner()
    lost = RoundLog(loop.state_dir)
    digests = [lost.manifest(round_id).sha256 for round_id in lost.sealed_ids()]
    shutil.rmtree(loop.state_dir)

    with loop.miner("second"), MinerClient(loop.address, patience_s=30) as client:
        again = read(loop, 7, 13)
        assert [batch.digest() for batch in again] == [batch.digest() for batch in told[7:]]
        assert {batch.round_id for batch in again} == {1, 2}
        (run,) = client.status().runs
        assert (run.committed_step, run.planned_steps) == (6, 20)
    restored = RoundLog(loop.state_dir)
    assert restored.log_id == lost.log_id
    assert [restored.manifest(i).sha256 for i in restored.sealed_ids()] == digests
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"]
    for name in ("first", "second"):
        text = loop.log_of(name).read_text()
        assert secret not in text
        assert "Traceback" not in text


@pytest.mark.long
def test_of_two_heads_on_two_disks_the_later_one_seals_and_the_other_ends(
    loop: Loop, s3: UnsteadyS3, folder: str, tmp_path: Path
) -> None:
    loop.archive_uri = s3.place(folder)
    loop.out.mkdir()
    weights = loop.out / "weights.safetensors"
    sha256 = initial_weights(EncoderConfig(encoder_args={"width": 8}), weights, seed=3)
    (tmp_path / "other").mkdir()
    later = Loop(tmp_path / "other", loop.dataset, 0, archive_uri=loop.archive_uri)
    with loop.miner("first"), MinerClient(loop.address, patience_s=30) as client:
        told = read(loop, 0, 8)
        with later.miner("second") as address:
            later.port = int(address.rpartition(":")[2])
            client.announce(step=50, uri=str(weights), sha256=sha256)
            wait_until(lambda: not (loop.state_dir / "endpoint.json").exists(), "end of the first")
            again = read(later, 0, 8)
            assert [batch.digest() for batch in again] == [batch.digest() for batch in told]
    assert "generation 2 has taken over" in loop.log_of("first").read_text()
    assert RoundLog(loop.state_dir).sealed_ids() == [1]


def test_a_store_that_does_not_heed_the_condition_is_refused_before_anything_is_made(
    loop: Loop, s3: UnsteadyS3, folder: str
) -> None:
    loop.archive_uri = s3.place(folder)
    with (
        s3.being("deaf"),
        pytest.raises(ProcessFailedError, match=r"rounds\.archive_uri: s3://.*If-None-Match"),
        loop.miner("first"),
    ):
        pass
    assert not (loop.state_dir / "LOG.json").exists()
