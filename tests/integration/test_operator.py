"""What an operator does to a service: look, announce good and bad weights, refresh, restart."""

import hashlib
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from miner.app.demo.processes import ProcessFailedError
from miner.embedding.config import EncoderConfig
from miner.embedding.weights import initial_weights
from miner.rounds import RoundLog
from miner.types import Groups
from tests.integration.loop import Loop, wait_until
from trainer.errors import RunRefusedError, WeightsRefusedError
from trainer.feed import MinerClient, TripletFeed
from trainer.feed.client import RunParameters

pytestmark = pytest.mark.timeout(240)


@pytest.mark.long
def test_weights_are_judged_mined_on_request_and_remembered(loop: Loop) -> None:
    loop.out.mkdir()
    good, bad = loop.out / "good.safetensors", loop.out / "bad.safetensors"
    good_sha256 = initial_weights(EncoderConfig(encoder_args={"width": 8}), good, seed=3)
    bad.write_bytes(b"these are no weights")
    bad_sha256 = hashlib.sha256(bad.read_bytes()).hexdigest()

    with loop.miner("first"), MinerClient(loop.address, patience_s=30) as client:
        status = client.status()
        assert [(r.round_id, r.strategy) for r in status.rounds] == [(1, "random")]
        assert status.num_identities == 36, "the test split is filtered out"
        with pytest.raises(WeightsRefusedError, match="announce weights"):
            client.request_refresh()
        with pytest.raises(WeightsRefusedError, match="sha256"):
            client.announce(step=50, uri=str(good), sha256="0" * 64)
        with pytest.raises(WeightsRefusedError, match="safetensors"):
            client.announce(step=50, uri=str(bad), sha256=bad_sha256)
        with pytest.raises(WeightsRefusedError, match="prefix"):
            client.announce(step=50, uri="/etc/hostname", sha256=good_sha256)
        assert len(client.status().rounds) == 1, "refused weights change nothing"

        assert not client.announce(step=50, uri=str(good), sha256=good_sha256)
        good.unlink()  # the service has its own copy
        wait_until(lambda: len(client.status().rounds) == 2, "round of the announced weights")
        assert client.request_refresh() == 50
        wait_until(lambda: len(client.status().rounds) == 3, "round on request")
        assert client.status().refresh.num_failed == 0

    log = RoundLog(loop.state_dir)
    mined = [log.manifest(round_id) for round_id in (2, 3)]
    assert [manifest.weights_sha256 for manifest in mined] == [good_sha256] * 2
    assert mined[0].strategy == "rank_window"
    stopped = loop.log_of("first").read_text()
    assert "drained: every stream has ended" in stopped
    assert "Traceback" not in stopped

    with loop.miner("second"), MinerClient(loop.address, patience_s=30) as client:
        assert client.request_refresh() == 50, "accepted weights outlive a restart"
        wait_until(lambda: len(client.status().rounds) == 4, "round after the restart")
    assert log.manifest(4).weights_sha256 == good_sha256
    assert log.manifest(4).generation == 2
    assert log.verify() == []


@pytest.mark.long
def test_a_trainer_without_shared_storage_uploads_asks_and_steers(loop: Loop) -> None:
    loop.out.mkdir()
    weights = loop.out / "weights.safetensors"
    sha256 = initial_weights(EncoderConfig(encoder_args={"width": 8}), weights, seed=3)
    with loop.miner(), MinerClient(loop.address, patience_s=60) as client:
        with pytest.raises(RunRefusedError, match="no round has been mined"):
            client.query_rows(np.array([0]), 3)
        cut = loop.out / "cut.safetensors"
        cut.write_bytes(weights.read_bytes()[:-5])
        digest = hashlib.sha256(cut.read_bytes()).hexdigest()
        with pytest.raises(WeightsRefusedError):
            client.upload(step=50, path=cut, sha256=digest)
        assert not client.upload(step=50, path=weights, sha256=sha256)
        wait_until(lambda: len(client.status().rounds) == 2, "round of the uploaded weights")
        uploads = list((loop.state_dir / "weights").iterdir())
        assert [path.name for path in uploads] == [f"{sha256}.safetensors"], "no part is left"

        rows = np.array([0, 100, 215])
        samples = client.samples(rows)
        assert samples["row_id"].to_pylist() == rows.tolist()
        found = client.query_rows(rows, 20)
        assert (found.round_id, found.model_step) == (2, 50)
        assert (found.row_ids_QK >= 0).all()
        by_identity = client.query_embeddings(
            np.ones((1, 128), np.float32), np.array([3], np.int32), 20
        )
        assert 3 not in by_identity.identity_ids_QK

        client.open_run(RunParameters(run_id="run", batch_rows=64))
        losses = np.full(36, 0.1, np.float32)
        losses[7] = 10.0
        client.report_difficulty("run", 60, np.arange(36, dtype=np.int32), losses)
        client.request_refresh()
        wait_until(lambda: len(client.status().rounds) == 3, "round that is steered")
        assert [client.round(round_id)["selection"]["num_losses"] for round_id in (2, 3)] == [0, 36]
        log = RoundLog(loop.state_dir)
        shares = [np.mean(_anchored(log.read(round_id)) == 7) for round_id in (2, 3)]
        assert shares[0] < 0.06
        assert shares[1] > 2 * shares[0]

        assert client.drain() == 0
        wait_until(lambda: not (loop.state_dir / "endpoint.json").exists(), "end of the service")
    assert "drained: every stream has ended" in loop.log_of("miner").read_text()


def _anchored(groups: Groups) -> np.ndarray:
    """The identity of each group's anchor."""
    identities: np.ndarray = groups.identity_ids_R[groups.row_offsets_G1[:-1]]
    return identities


@pytest.mark.long
def test_a_failed_refresh_is_reported_and_the_last_good_round_stays(loop: Loop) -> None:
    loop.out.mkdir()
    weights = loop.out / "weights.safetensors"
    sha256 = initial_weights(EncoderConfig(encoder_args={"width": 8}), weights, seed=3)
    loop.selection = {"max_similarity": -0.9}  # no candidate passes

    with loop.miner(), MinerClient(loop.address, patience_s=30) as client:
        client.announce(step=50, uri=str(weights), sha256=sha256)
        wait_until(lambda: client.status().refresh.num_failed == 1, "failed refresh")
        status = client.status()
        assert "max_similarity" in status.refresh.last_error
        assert [r.round_id for r in status.rounds] == [1]
        with TripletFeed(loop.address, run_id="run", batch_rows=64, num_steps=3) as feed:
            assert [batch.round_id for batch in feed] == [1, 1, 1]
    assert RoundLog(loop.state_dir).sealed_ids() == [1]


@pytest.mark.long
def test_a_stop_in_the_middle_of_a_refresh_drains_at_once_and_the_next_start_goes_on(
    loop: Loop,
) -> None:
    loop.out.mkdir()
    weights = loop.out / "weights.safetensors"
    sha256 = initial_weights(EncoderConfig(encoder_args={"width": 8}), weights, seed=3)
    loop.chunk_rows = 1  # 216 chunks: seconds of embedding
    with loop.miner("first"), MinerClient(loop.address, patience_s=30) as client:
        client.announce(step=50, uri=str(weights), sha256=sha256)
        wait_until(lambda: client.status().refresh.done > 10, "refresh under way")
        begin_s = time.monotonic()
        loop.stop_miner()
        assert time.monotonic() - begin_s < 15
    stopped = loop.log_of("first").read_text()
    assert "the service is stopping" in stopped
    assert "drained: every stream has ended" in stopped
    assert RoundLog(loop.state_dir).sealed_ids() == [1]

    with loop.miner("second"), MinerClient(loop.address, patience_s=30) as client:
        wait_until(lambda: len(client.status().rounds) == 2, "round that was given up")
    reused = re.search(r"(\d+) chunks to embed, (\d+) there", loop.log_of("second").read_text())
    assert reused is not None
    assert int(reused[2]) > 10, "finished chunks are not embedded again"


def test_rounds_of_another_dataset_are_not_served(loop: Loop, tmp_path: Path) -> None:
    with loop.miner("first"):
        pass
    shutil.rmtree(loop.state_dir / "store")
    table = pq.read_table(loop.dataset)
    other = tmp_path / "other.parquet"
    pq.write_table(table.slice(12), other)
    loop.dataset = other
    with (
        pytest.raises(ProcessFailedError, match="mined from the dataset with fingerprint"),
        loop.miner("second"),
    ):
        pass
