"""Names appear only with their content, and locks exclude."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from miner.errors import RoundLogError
from miner.rounds import durable
from tests.miner.rounds.round_samples import make_draft, make_groups, make_log


def test_publishing_never_replaces_a_folder_with_content(tmp_path: Path) -> None:
    for name in ("building", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        durable.publish_folder(tmp_path / "building", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "final"


def test_a_replaced_file_is_never_seen_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    durable.replace_file(path, b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        durable.replace_file(path, b"new and longer")
    assert path.read_bytes() == b"old"


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every fsync with the name of its file or folder, and every renaming, in order."""
    seen: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def watched_fsync(descriptor: int) -> None:
        seen.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def watched(move: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def call(source: Path, target: Path) -> None:
            seen.append(f"{source.name} -> {target.name}")
            move(source, target)

        return call

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched(rename))
    monkeypatch.setattr(os, "replace", watched(replace))
    return seen


def test_a_replaced_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, events: list[str]
) -> None:
    durable.replace_file(tmp_path / "file", b"content")
    assert events == ["fsync .file.tmp", ".file.tmp -> file", f"fsync {tmp_path.name}"]


def test_all_of_a_round_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, events: list[str]
) -> None:
    _, writer = make_log(tmp_path, num_rounds=0)
    events.clear()
    writer.seal(make_groups(10), make_draft())
    chunks, rest = events[:3], events[3:]
    assert sorted(chunks) == [f"fsync chunk-0000{i}.arrow" for i in range(3)]
    assert rest == [
        "fsync MANIFEST.json",
        "fsync 00000001.g1.building",
        "00000001.g1.building -> 00000001",
        "fsync rounds",
    ]


def test_a_lock_makes_threads_take_turns(tmp_path: Path) -> None:
    inside: list[str] = []

    def enter(name: str) -> None:
        with durable.locked(tmp_path / "LOCK"):
            inside.append(f"{name} in")
            inside.append(f"{name} out")

    with durable.locked(tmp_path / "LOCK"):
        threads = [threading.Thread(target=enter, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        threads[0].join(0.05)
        assert inside == []
    for thread in threads:
        thread.join()
    assert sorted(inside[:2]) in (["a in", "a out"], ["b in", "b out"])
    assert len(inside) == 4


def test_a_lock_that_is_never_released_ends_in_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "LOCK_PATIENCE_S", 0.02)
    with (
        durable.locked(tmp_path / "LOCK"),
        pytest.raises(RoundLogError, match=r"LOCK has been locked by another process for 0\.02 s"),
        durable.locked(tmp_path / "LOCK"),
    ):
        pass
