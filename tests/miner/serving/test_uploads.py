"""Weights sent in parts over a real socket: whole or not at all, and nothing left behind."""

import asyncio
import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from miner.serving import uploads
from protos.coalface.v1 import mining_pb2, mining_pb2_grpc
from tests.trainer.feed.served_miner import ServerThread, channel_to, make_folder
from trainer.errors import LimitError
from trainer.feed import MinerClient

CONTENT = bytes(range(256)) * 12_000  # 3 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def miner(tmp_path: Path) -> Iterator[ServerThread]:
    server = ServerThread(make_folder(tmp_path), max_upload_bytes=4_000_000)
    yield server
    server.stop()


def header(**values: Any) -> mining_pb2.UploadWeightsRequest:
    whole = {"step": 7, "sha256": SHA256, "total_bytes": len(CONTENT), **values}
    return mining_pb2.UploadWeightsRequest(header=mining_pb2.UploadHeader(**whole))


def parts(content: bytes = CONTENT, size: int = 1_000_000) -> Iterator[Any]:
    for begin in range(0, len(content), size):
        yield mining_pb2.UploadWeightsRequest(content=content[begin : begin + size])


def leftovers(miner: ServerThread) -> list[Path]:
    folder = miner.backend.uploads_folder
    return list(folder.iterdir()) if folder.exists() else []


def test_what_arrives_is_judged_as_if_it_were_announced(
    miner: ServerThread, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(CONTENT)
    with MinerClient(miner.address, patience_s=10) as client:
        assert not client.upload(step=7, path=file, sha256=SHA256)
        assert client.upload(step=3, path=file, sha256=SHA256), "newer ones were accepted before"
    assert miner.backend.uploaded == [CONTENT, CONTENT]
    assert [(step, sha) for step, _, sha in miner.backend.announced] == [(7, SHA256), (3, SHA256)]
    assert leftovers(miner) == []


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], "header: must be in the first message"),
        (list(parts()), "header: must be in the first message"),
        ([header(step=-1), *parts()], "header.step: "),
        ([header(sha256="zz"), *parts()], "header.sha256: must be 64"),
        ([header(total_bytes=0), *parts()], "header.total_bytes: "),
        ([header(sha256="0" * 64), *parts()], "header.sha256: must be that of the content"),
        ([header(), *parts(CONTENT[:-1])], "content: must be"),
        ([header(), *parts(CONTENT + b"x")], "content: must be"),
        ([header(), header(), *parts()], "header: must be in the first message only"),
        ([header()], "content: must be"),
        ([header(), mining_pb2.UploadWeightsRequest()], "content: must hold at least a byte"),
    ],
)
def test_a_wrong_upload_is_refused_and_removed(
    miner: ServerThread, messages: list[Any], text: str
) -> None:
    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.UploadWeights(iter(messages), timeout=10)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(text)
    assert miner.backend.announced == []
    assert leftovers(miner) == []


def test_an_upload_above_the_limit_is_refused_before_its_content(
    miner: ServerThread, tmp_path: Path
) -> None:
    file = tmp_path / "large.safetensors"
    file.write_bytes(bytes(4_000_001))
    with (
        MinerClient(miner.address, patience_s=10) as client,
        pytest.raises(LimitError, match=r"max_upload_bytes"),
    ):
        client.upload(step=1, path=file, sha256="0" * 64)
    assert leftovers(miner) == []


def test_one_that_falls_silent_is_given_up(
    miner: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "SILENCE_S", 0.3)
    stopped = threading.Event()

    def messages() -> Iterator[Any]:
        yield header()
        yield next(parts())
        stopped.wait(10)

    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.UploadWeights(messages(), timeout=10)
    stopped.set()
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert leftovers(miner) == []


def trickle() -> Iterator[Any]:
    yield header()
    for byte in CONTENT:
        yield mining_pb2.UploadWeightsRequest(content=bytes([byte]))
        time.sleep(0.1)


def nothing() -> Iterator[Any]:
    time.sleep(5)
    yield header()


@pytest.mark.parametrize("messages", [trickle, nothing])
def test_one_that_comes_too_slowly_is_given_up(
    miner: ServerThread, monkeypatch: pytest.MonkeyPatch, messages: Callable[[], Iterator[Any]]
) -> None:
    monkeypatch.setattr(uploads, "SILENCE_S", 0.5)
    begin_s = time.monotonic()
    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.UploadWeights(messages(), timeout=20)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert time.monotonic() - begin_s < 4
    assert leftovers(miner) == []


def test_a_disk_that_turns_read_only_is_told_as_such(
    miner: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(uploads, "reach_write", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.UploadWeights(iter([header(), *parts()]), timeout=10)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "Read-only" in error.details()


async def take(folder: Path, pool: ThreadPoolExecutor, inside: Callable[[Path], Any]) -> None:
    """An upload of one message; ``inside`` is called while the file is there."""
    whole = header()
    whole.content = CONTENT
    messages = [whole, grpc.aio.EOF]

    async def read() -> Any:
        return messages.pop(0)

    async with uploads.received(read, 2**30, folder, pool) as (promised, path):
        assert promised.step == 7
        assert path.read_bytes() == CONTENT
        await asyncio.to_thread(inside, path)
    assert not path.exists()


def test_a_pool_that_takes_nothing_more_does_not_keep_the_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        asyncio.run(take(tmp_path, pool, lambda _: pool.shutdown()))


def test_a_file_that_is_written_after_its_upload_has_ended_is_none(tmp_path: Path) -> None:
    late = uploads._Upload(tmp_path / "late", 10)
    late.remove()
    late.write(b"12345")
    begun = uploads._Upload(tmp_path / "begun", 10)
    begun.write(b"12345")
    begun.remove()
    begun.write(b"12345")
    assert list(tmp_path.iterdir()) == []


def test_abandoned_files_are_removed_and_living_ones_not_whatever_the_clock_says(
    tmp_path: Path,
) -> None:
    killed, recent = tmp_path / ".upload-killed", tmp_path / ".upload-recent"
    for each in (killed, recent):
        each.write_bytes(b"x")
    os.utime(killed, (0, 0))

    def another(path: Path) -> None:
        os.utime(path, (0, 0))
        asyncio.run(take(tmp_path, pool, lambda _: None))
        assert path.read_bytes() == CONTENT

    with ThreadPoolExecutor(2) as pool:
        asyncio.run(take(tmp_path, pool, another))
    assert list(tmp_path.iterdir()) == [recent]


def test_one_that_is_cut_off_leaves_nothing(miner: ServerThread) -> None:
    stopped = threading.Event()

    def messages() -> Iterator[Any]:
        yield header()
        yield from parts(CONTENT[:2_000_000])
        stopped.wait(10)

    with channel_to(miner.address) as channel:
        stub: Any = mining_pb2_grpc.MiningServiceStub(channel)
        call = stub.UploadWeights.future(messages(), timeout=10)
        deadline_s = time.monotonic() + 5
        while not leftovers(miner) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert leftovers(miner), "the upload has begun"
        call.cancel()
        stopped.set()
        while leftovers(miner) and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert leftovers(miner) == []
    assert miner.backend.announced == []
