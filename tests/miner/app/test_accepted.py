"""The newest accepted weights survive a restart, whole or not at all."""

import os
from pathlib import Path

import pytest

from miner.app.accepted import (
    AcceptedWeights,
    drop_older_copies,
    keep_copy,
    read_accepted,
    write_accepted,
)
from miner.errors import ConfigError, DiskError

WEIGHTS = AcceptedWeights(7, "/w/7.safetensors", "ab" * 32)


def test_nothing_was_accepted_at_first(tmp_path: Path) -> None:
    assert read_accepted(tmp_path) is None


def test_what_was_accepted_last_is_read_back(tmp_path: Path) -> None:
    write_accepted(tmp_path, WEIGHTS)
    newer = AcceptedWeights(9, "/w/9.safetensors", "cd" * 32)
    write_accepted(tmp_path, newer)
    assert read_accepted(tmp_path) == newer


def test_a_write_that_breaks_off_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_accepted(tmp_path, WEIGHTS)

    def broken(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(DiskError, match="No space left"):
        write_accepted(tmp_path, AcceptedWeights(9, "/w/9.safetensors", "cd" * 32))
    assert read_accepted(tmp_path) == WEIGHTS


@pytest.mark.parametrize("text", ["", "{", '{"step": 1}', "[1, 2]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "weights.json").write_text(text)
    with pytest.raises(ConfigError, match=r"weights\.json is damaged.*remove it"):
        read_accepted(tmp_path)


def test_older_copies_go_and_newer_ones_stay(tmp_path: Path) -> None:
    copies = {}
    for number, name in enumerate(("old", "mined", "newer")):
        copies[name] = keep_copy(tmp_path, name.encode(), f"{number:064x}")
        os.utime(copies[name], ns=(number, number))
    drop_older_copies(tmp_path, copies["mined"].stem)
    assert not copies["old"].exists()
    assert copies["mined"].read_bytes() == b"mined"
    assert copies["newer"].read_bytes() == b"newer"


def test_a_copy_that_a_kill_cut_short_goes_with_the_older_ones(tmp_path: Path) -> None:
    mined = keep_copy(tmp_path, b"mined", "ab" * 32)
    half, under_way = (mined.with_name(f".{n * 64}.safetensors.tmp") for n in "12")
    for path, age_s in ((half, -10), (under_way, 10)):
        path.write_bytes(b"a part of")
        os.utime(path, (mined.stat().st_mtime + age_s,) * 2)
    drop_older_copies(tmp_path, mined.stem)
    assert [path.name for path in mined.parent.iterdir() if path.suffix == ".tmp"] == [
        under_way.name
    ]


def test_what_cannot_be_kept_or_read_is_a_matter_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("no folder")
    with pytest.raises(DiskError, match="cannot be kept"):
        keep_copy(tmp_path, b"weights", "ab" * 32)
    (tmp_path / "weights.json").mkdir()
    with pytest.raises(DiskError, match=r"weights\.json cannot be read"):
        read_accepted(tmp_path)
