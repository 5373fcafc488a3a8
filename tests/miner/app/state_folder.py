"""A state folder with something of everything, small enough to be checked a thousand times."""

import hashlib
from pathlib import Path

import numpy as np

from miner.app.accepted import AcceptedWeights, keep_copy, write_accepted
from miner.data import RowStore
from miner.rounds import RoundLog, RoundWriter
from miner.serving.runs import RunParameters, RunStore
from miner.workers.snapshot import SnapshotKey, SnapshotStore
from tests.trainer.feed.served_miner import NUM_ROWS, make_folder, seal_round


def make_state(root: Path) -> tuple[Path, Path]:
    """The state folder and its row store."""
    make_folder(root, num_rounds=3, num_groups=12)
    state, store = root / "log", root / "store"
    log, runs = RoundLog(state), RunStore(state, stride_steps=4)
    for run_id in ("run-1", "run-2"):
        runs.open(RunParameters(run_id, batch_rows=24, seed=5))[0].plan_some(7, 1, log)
    for round_id in (4, 5):
        seal_round(root, round_id, num_groups=12)
    runs.get("run-1").plan_some(13, 1, log)
    runs.get("run-1").commit(9)
    RoundWriter.open(log).retain(2, {3})
    snapshots = SnapshotStore(state / "snapshots")
    fingerprint = RowStore.open(store).fingerprint
    key = SnapshotKey("ab" * 32, "cd" * 32, fingerprint, NUM_ROWS, chunk_rows=64)
    for chunk in range(2):  # the third is still to come
        begin, end = key.rows_of(chunk)
        rows = np.random.default_rng(chunk).random((end - begin, 3), np.float32)
        snapshots.write_chunk(key, chunk, rows)
    content = b"weights" * 20
    sha256 = hashlib.sha256(content).hexdigest()
    copy = keep_copy(state, content, sha256)
    write_accepted(state, AcceptedWeights(12, str(copy), sha256))
    return state, store
