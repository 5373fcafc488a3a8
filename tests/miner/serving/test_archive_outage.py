"""While the archive's store is away, a real server serves what is planned, and new steps wait."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from miner.serving.run_archive import RunArchive
from tests.integration.loop import wait_until
from tests.miner.rounds.loopback_s3 import UnsteadyS3, objects_of
from tests.trainer.feed.served_miner import ServerThread, make_folder
from trainer.feed import TripletBatch, TripletFeed

STRIDE = 8


def read(server: ServerThread, first_step: int, num_steps: int) -> list[TripletBatch]:
    feed = TripletFeed(
        server.address,
        run_id="run",
        batch_rows=24,
        first_step=first_step,
        num_steps=num_steps,
        patience_s=20.0,
    )
    with feed:
        return list(feed)


@pytest.mark.parametrize("mode", ["away", "denying", "hanging"])
def test_planned_steps_are_served_and_a_new_stride_waits_for_the_store(
    s3: UnsteadyS3, folder: str, tmp_path: Path, mode: str
) -> None:
    archive = RunArchive(objects_of(s3, folder, timeout_s=0.5))
    server = ServerThread(make_folder(tmp_path), archive, stride_steps=STRIDE)
    try:
        told = [batch.digest() for batch in read(server, 0, STRIDE)]
        with ThreadPoolExecutor(1) as thread:
            with s3.being(mode):
                waiting = thread.submit(read, server, STRIDE, STRIDE)
                wait_until(lambda: s3.puts("/plan/000000000008.json") > 1, "second try")
                for _ in range(3):
                    assert [batch.digest() for batch in read(server, 0, STRIDE)] == told
                assert not waiting.done()
            assert [batch.step for batch in waiting.result(30)] == [*range(STRIDE, 2 * STRIDE)]
    finally:
        server.stop()
    assert archive.first_steps("run")[:2] == [0, STRIDE]
