"""A small real miner for the feed's tests: a log with rounds, a row store, and a gRPC server.

As a program it serves a folder until it is killed; SIGTERM drains it:

    python -m tests.trainer.feed.served_miner FOLDER PORT [STRIDE_STEPS]
"""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from miner.data import DatasetConfig, RowStore, ingest
from miner.errors import RunConflictError, WeightsRefusedError
from miner.rounds import RoundDraft, RoundLog, RoundWriter
from miner.serving.backend import RefreshState
from miner.serving.config import ServingConfig
from miner.serving.queries import LiveSnapshot
from miner.serving.run_archive import RunArchive
from miner.serving.runs import RunStore
from miner.serving.server import MiningServer, start_server
from miner.types import Groups

NUM_IDENTITIES, SAMPLES_EACH = 40, 4
NUM_ROWS = NUM_IDENTITIES * SAMPLES_EACH
REPOSITORY = Path(__file__).resolve().parents[3]


def make_folder(
    root: Path, num_rounds: int = 2, num_groups: int = 60, image_repeats: int = 20
) -> Path:
    """A dataset of 160 rows, its row store, and a log of random rounds."""
    table = pa.table(
        {
            "sample_id": pa.array(range(1000, 1000 + NUM_ROWS)),
            "identity": [f"person-{i // SAMPLES_EACH}" for i in range(NUM_ROWS)],
            "image": [b"pixels of row %d " % i * image_repeats for i in range(NUM_ROWS)],
        }
    )
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, root / "data.parquet")
    ingest(DatasetConfig(uri=str(root / "data.parquet")), root / "store")
    for round_id in range(1, num_rounds + 1):
        seal_round(root, round_id, num_groups=num_groups)
    return root


def seal_round(root: Path, round_id: int, *, num_groups: int = 60, model_step: int = 0) -> None:
    """Add one round, whose content follows from its number."""
    store = RowStore.open(root / "store")
    draft = RoundDraft(
        model_step=model_step,
        weights_sha256="ab" * 32 if model_step else "",
        dataset_fingerprint=store.fingerprint,
        strategy="random",
        config={},
        seed=0,
        index={},
        recall=None,
        selection={},
        phases_s={},
        created_unix_s=0.0,
    )
    RoundWriter.open(RoundLog(root / "log")).seal(toy_groups(num_groups, round_id), draft)


def toy_groups(num_groups: int, seed: int) -> Groups:
    """Groups of 2 or 3 identities with 2 or 3 rows each, every valid triplet of the first row."""
    rng = np.random.default_rng(seed)
    return Groups.concatenate([_toy_group(rng) for _ in range(num_groups)])


def _toy_group(rng: np.random.Generator) -> Groups:
    num_identities, num_each = int(rng.integers(2, 4)), int(rng.integers(2, 4))
    identities = rng.choice(NUM_IDENTITIES, num_identities, replace=False)
    rows = np.concatenate(
        [i * SAMPLES_EACH + rng.choice(SAMPLES_EACH, num_each, replace=False) for i in identities]
    )
    negatives = np.arange(num_each, len(rows), dtype=np.int32)
    num_triplets = len(negatives)
    return Groups(
        row_ids_R=rows.astype(np.int64),
        identity_ids_R=np.repeat(identities, num_each).astype(np.int32),
        row_offsets_G1=np.array([0, len(rows)], np.int64),
        anchors_T=np.zeros(num_triplets, np.int32),
        positives_T=np.ones(num_triplets, np.int32),
        negatives_T=negatives,
        similarities_ap_T=rng.random(num_triplets, np.float32),
        similarities_an_T=np.full(num_triplets, np.nan, np.float32),
        tiers_T=rng.integers(0, 3, num_triplets).astype(np.uint8),
        triplet_offsets_G1=np.array([0, num_triplets], np.int64),
    )


class ToyBackend:
    """Accepts weights by their URI, and remembers what it was told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.announced: list[tuple[int, str, str]] = []
        self.uploaded: list[bytes] = []
        self.state = RefreshState()
        self.live: LiveSnapshot | None = None
        self.drains = 0

    async def announce(self, step: int, uri: str, sha256: str) -> bool:
        if "bad" in uri:
            raise WeightsRefusedError(f"{uri}: the digest does not match", kind="digest")
        if Path(uri).parent == self.uploads_folder:
            self.uploaded.append(Path(uri).read_bytes())
        superseded = any(newer > step for newer, _, _ in self.announced)
        self.announced.append((step, uri, sha256))
        return superseded

    async def request_refresh(self) -> int:
        if not self.announced:
            raise WeightsRefusedError("no weights have been accepted yet: announce some first")
        return max(step for step, _, _ in self.announced)

    async def request_drain(self) -> None:
        self.drains += 1

    def refresh_status(self) -> RefreshState:
        return self.state

    def live_snapshot(self) -> LiveSnapshot:
        if self.live is None:
            raise RunConflictError("no round has been mined yet")
        return self.live

    @property
    def uploads_folder(self) -> Path:
        return self.root / "uploads"


class ServerThread:
    """A server on an event loop of its own, in this process."""

    def __init__(self, root: Path, archive: RunArchive | None = None, **settings: Any) -> None:
        config = ServingConfig(**{"heartbeat_s": 0.1, "stride_steps": 8, **settings})
        self.backend = ToyBackend(root)
        self.log = RoundLog(root / "log")
        self.runs = RunStore(root / "log", config.stride_steps, archive)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        store = RowStore.open(root / "store")
        try:
            self.server: MiningServer = self.do(
                start_server(config, self.log, self.runs, store, self.backend)
            )
        except BaseException:
            self._end_loop()
            raise

    @property
    def address(self) -> str:
        return self.server.address

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    def stop(self, grace_s: float = 0.0) -> None:
        if self._thread.is_alive():
            self.do(self.server.drain(grace_s))
            self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class ServerProcess:
    """A server in a process of its own, to be killed."""

    def __init__(self, root: Path, port: int, stride_steps: int = 8) -> None:
        command = [sys.executable, "-m", "tests.trainer.feed.served_miner"]
        self._process = subprocess.Popen(
            [*command, str(root), str(port), str(stride_steps)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        self.address = f"127.0.0.1:{port}"

    def wait_ready(self) -> "ServerProcess":
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            assert self._process.poll() is None, "the server process ended"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(self.address.rpartition(":")[2]))) == 0:
                    return self
            time.sleep(0.05)
        raise AssertionError("the server process did not listen within 30 s")

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        return self._process.wait(timeout=30)


class FlakyProxy:
    """Passes connections on to a miner, but the chosen ones (counted from 0) hang for ever.

    What the miner sends passes at ``bytes_per_s``, if that is given.
    """

    def __init__(self, target: str, hanging: set[int], bytes_per_s: float = math.inf) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._hanging = hanging
        self._bytes_per_s = bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.num_connections = 0
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(inner)
            number, self.num_connections = self.num_connections, self.num_connections + 1
            if number not in self._hanging:
                outer = socket.create_connection(self._target)
                self._sockets.append(outer)
                for way in ((inner, outer, math.inf), (outer, inner, self._bytes_per_s)):
                    threading.Thread(target=_pump, args=way, daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, bytes_per_s: float) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(16_384):
            time.sleep(len(content) / bytes_per_s)
            sink.sendall(content)
        sink.shutdown(socket.SHUT_WR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def channel_to(address: str) -> grpc.Channel:
    """A channel that shares no connection with other tests."""
    return grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


async def serve(root: Path, port: int, stride_steps: int) -> None:
    config = ServingConfig(port=port, heartbeat_s=0.2, stride_steps=stride_steps)
    runs = RunStore(root / "log", stride_steps)
    store = RowStore.open(root / "store")
    server = await start_server(config, RoundLog(root / "log"), runs, store, ToyBackend(root))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.drain(2.0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
