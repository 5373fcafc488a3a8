"""Everything that a miner writes in its life, once through; failpoints end it in between.

    python -m tests.chaos.one_life TEMPLATE WORK SETTINGS...

For each setting of `COALFACE_FAILPOINTS` a forked process lives one life on its own copy of the
template: folder ``i`` in WORK is what it left, ``says-<i>`` what it had answered until then, and
``ends-<i>`` the signal that ended it. What is refused is asked for once more, as clients do.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

from miner import failpoints
from miner.app.accepted import (
    AcceptedWeights,
    copies_folder,
    drop_older_copies,
    keep_copy,
    write_accepted,
)
from miner.core.permutation import group_order
from miner.data import RowStore
from miner.errors import CoalfaceError
from miner.rounds import RoundLog, RoundsConfig, RoundWriter
from miner.rounds.archive import Archive
from miner.rounds.objects import Objects
from miner.serving.assemble import BatchAssembler
from miner.serving.difficulty import DifficultyBook
from miner.serving.metrics.meters import ServingMeters
from miner.serving.run_archive import RunArchive
from miner.serving.runs import Run, RunParameters, RunStore
from miner.serving.streams import StreamSource, TripletStream
from miner.serving.uploads import received
from miner.workers.snapshot import SnapshotKey, SnapshotStore
from protos.coalface.v1 import mining_pb2
from tests.miner.rounds.round_samples import make_draft
from tests.trainer.feed.served_miner import NUM_IDENTITIES, make_folder, toy_groups

BATCH_ROWS, STRIDE_STEPS = 24, 8
NUM_STEPS = 20
NUM_GROUPS, CHUNK_GROUPS = 40, 16
KEY = SnapshotKey("w" * 64, "p", "d", num_rows=50, chunk_rows=25)
OLD_WEIGHTS, NEW_WEIGHTS = b"old weights " * 50, b"new weights " * 50
UPLOAD = b"uploaded weights " * 100

Say = Callable[..., None]


def rows_of(version: int, chunk: int) -> np.ndarray:
    """The rows of a chunk in the snapshot: version 0 before the life, 1 by it."""
    begin, end = KEY.rows_of(chunk)
    embeddings_ND = np.random.default_rng(version).normal(size=(KEY.num_rows, 3))
    return embeddings_ND.astype(np.float32)[begin:end]


def stream(run: Run, log: RoundLog, rank: int = 0, world_size: int = 1) -> list[tuple[int, str]]:
    """Read a run's first steps as a client would: (step, digest of the batch) each."""
    request = mining_pb2.StreamTripletsRequest(
        run_id=run.parameters.run_id, num_steps=NUM_STEPS, rank=rank, world_size=world_size
    )

    async def read() -> list[tuple[int, str]]:
        with ThreadPoolExecutor(1) as pool:
            source = StreamSource(BatchAssembler(log, None), pool, ServingMeters())
            one = TripletStream(source, run, request, 2**20)
            producer = asyncio.create_task(one.produce())
            batches = []
            while message := await one.next_message(5.0):
                batches += mining_pb2.StreamTripletsResponse.FromString(message).batches
            await producer
        return [(b.step, sha256(b.SerializeToString()).hexdigest()) for b in batches]

    return asyncio.run(read())


def objects_of(root: Path) -> Objects:
    """The archive of a life lies beside its state, and is copied with it."""
    return Objects(f"file://{root}/archive")


def runs_of(root: Path) -> RunStore:
    return RunStore(root / "log", STRIDE_STEPS, RunArchive(objects_of(root)))


def make_template(root: Path) -> None:
    """A miner that has lived before: rounds, a run, weights, embeddings, losses.

    Its disk is older than its archive: the newest round is there alone.
    """
    make_folder(root, num_rounds=3, num_groups=NUM_GROUPS)
    state = root / "log"
    run, _ = runs_of(root).open(RunParameters("before", BATCH_ROWS))
    stream(run, RoundLog(state))
    for number in (4, 5):
        seal(root, lambda *_: None, number)
    shutil.rmtree(RoundLog(state).folder(5))
    (state / "rounds" / "00000006.g1.building").mkdir()
    old = sha256(OLD_WEIGHTS).hexdigest()
    copy = keep_copy(state, OLD_WEIGHTS, old)
    write_accepted(state, AcceptedWeights(1, str(copy), old))
    os.utime(copy, (1.0, 1.0))
    SnapshotStore(state / "snapshots").write_chunk(KEY, 0, rows_of(0, 0))
    book = DifficultyBook(state, NUM_IDENTITIES)
    book.report("before", 1, np.array([0, 1], np.int32), np.array([0.5, 0.7], np.float32))


def seal(root: Path, say: Say, round_id: int = 6) -> None:
    log = RoundLog(root / "log")
    archive = Archive(objects_of(root))
    writer = RoundWriter.open(log, RoundsConfig(chunk_groups=CHUNK_GROUPS), archive)
    say("generation", writer.generation)
    if writer.next_round_id <= round_id:
        store = RowStore.open(root / "store")
        draft = make_draft(dataset_fingerprint=store.fingerprint)
        manifest = writer.seal(toy_groups(NUM_GROUPS, round_id), draft)
        say("sealed", manifest.round_id, manifest.sha256)


def retain(root: Path, say: Say) -> None:
    log = RoundLog(root / "log")
    needed = runs_of(root).needed_rounds(idle_run_s=3600)
    writer = RoundWriter.open(log, archive=Archive(objects_of(root)))
    say("retained", writer.retain(2, needed))


def plan(root: Path, say: Say) -> None:
    run, _ = runs_of(root).open(RunParameters("new", BATCH_ROWS))
    say("opened", "new")
    for step, digest in stream(run, RoundLog(root / "log")):
        say("batch", step, digest)
    say("committed", run.commit(STRIDE_STEPS))


def accept(root: Path, say: Say) -> None:
    state, digest = root / "log", sha256(NEW_WEIGHTS).hexdigest()
    copy = keep_copy(state, NEW_WEIGHTS, digest)
    write_accepted(state, AcceptedWeights(2, str(copy), digest))
    say("accepted", 2)
    drop_older_copies(state, digest)


def embed(root: Path, say: Say) -> None:
    store = SnapshotStore(root / "log" / "snapshots")
    for chunk in range(KEY.num_chunks):
        store.write_chunk(KEY, chunk, rows_of(1, chunk))
        say("embedded", chunk)


def report(root: Path, say: Say) -> None:
    book = DifficultyBook(root / "log", NUM_IDENTITIES)
    known = book.report("before", 2, np.array([1, 2], np.int32), np.array([0.1, 0.2], np.float32))
    say("reported", known)


def upload(root: Path, say: Say) -> None:
    header = mining_pb2.UploadHeader(
        step=3, sha256=sha256(UPLOAD).hexdigest(), total_bytes=len(UPLOAD)
    )
    messages = [
        mining_pb2.UploadWeightsRequest(header=header, content=UPLOAD[:1000]),
        mining_pb2.UploadWeightsRequest(content=UPLOAD[1000:]),
        grpc.aio.EOF,
    ]

    async def receive() -> str:
        async def read() -> Any:
            return messages.pop(0)

        folder = copies_folder(root / "log")
        with ThreadPoolExecutor(1) as pool:
            async with received(read, 2**20, folder, pool) as (_, path):
                return sha256(path.read_bytes()).hexdigest()

    say("uploaded", asyncio.run(receive()))


LIFE: tuple[Callable[[Path, Say], None], ...] = (
    *(seal, retain, plan, accept, embed, report, upload),
)


def live(root: Path, say: Say) -> None:
    """One life; each part is tried twice at most."""
    for part in LIFE:
        try:
            part(root, say)
        except (CoalfaceError, OSError) as exc:
            say("refused", part.__name__, str(exc))
            part(root, say)
    say("lived")


def main(template: Path, work: Path, settings: list[str]) -> None:
    group_order(8, seed=0, round_id=1, pass_number=0)  # compiled once, before the forks
    for number, setting in enumerate(settings):
        root = work / str(number)
        shutil.copytree(template, root)
        child = os.fork()
        if child == 0:
            _end_as(root, work / f"says-{number}", setting)
        _, status = os.waitpid(child, 0)
        (work / f"ends-{number}").write_text(str(os.WTERMSIG(status) or os.WEXITSTATUS(status)))


def _end_as(root: Path, says: Path, setting: str) -> None:
    code = 1
    try:
        answers = os.open(says, os.O_WRONLY | os.O_CREAT, 0o644)
        failpoints.arm(setting)
        live(root, partial(_say, answers))
        code = 0
    finally:
        os._exit(code)


def _say(descriptor: int, *answer: Any) -> None:
    os.write(descriptor, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
