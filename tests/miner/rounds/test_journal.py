"""Finished records are kept or reported; unfinished ones vanish."""

import os
from pathlib import Path
from typing import Any

import pytest

from miner.errors import RoundLogError
from miner.rounds.durable import locked
from miner.rounds.journal import Journal

RECORDS: list[dict[str, Any]] = [{"n": 1}, {"n": 2, "text": "longer"}, {"n": 3}]


def write(path: Path) -> list[int]:
    journal = Journal(path)
    with locked(path) as descriptor:
        assert list(journal.catch_up(descriptor)) == []
        return [journal.append(descriptor, record) for record in RECORDS]


def load(path: Path) -> list[dict[str, Any]]:
    journal = Journal(path)
    with locked(path) as descriptor:
        return [record for _, record in journal.catch_up(descriptor)]


def test_records_come_back_in_order_and_by_offset(tmp_path: Path) -> None:
    offsets = write(tmp_path / "journal")
    assert load(tmp_path / "journal") == RECORDS
    journal = Journal(tmp_path / "journal")
    assert [journal.read(offset) for offset in offsets] == RECORDS


def test_any_truncation_drops_the_unfinished_record_only(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    offsets = [*write(path), path.stat().st_size]
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        finished = sum(offset <= length for offset in offsets) - 1
        assert load(path) == RECORDS[:finished]
        assert path.stat().st_size == offsets[finished], "the unfinished bytes are cut off"
        assert load(path) == RECORDS[:finished]


def test_any_flipped_bit_in_a_finished_record_is_reported_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    offsets = write(path)
    content = path.read_bytes()
    for i in range(offsets[2]):
        damaged = bytearray(content)
        damaged[i] ^= 1
        path.write_bytes(damaged)
        begin = max(offset for offset in offsets if offset <= i)
        with pytest.raises(RoundLogError, match=f"journal: the record at byte {begin}"):
            load(path)


def test_blocks_that_reached_the_disk_out_of_order_are_an_unfinished_record(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    offsets = write(path)
    content = path.read_bytes()
    path.write_bytes(content[: offsets[2]] + b"\0" * 5 + content[offsets[2] + 5 :])
    assert load(path) == RECORDS[:2]
    path.write_bytes(b"\0" * 5 + content[5:])
    with pytest.raises(RoundLogError, match="record at byte 0"):
        load(path)


def test_a_second_journal_sees_what_the_first_added(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first, second = Journal(path), Journal(path)
    with locked(path) as descriptor:
        list(first.catch_up(descriptor))
        first.append(descriptor, RECORDS[0])
    with locked(path) as descriptor:
        assert [record for _, record in second.catch_up(descriptor)] == RECORDS[:1]
        second.append(descriptor, RECORDS[1])
    with locked(path) as descriptor:
        assert [record for _, record in first.catch_up(descriptor)] == RECORDS[1:2]


def test_records_that_disappear_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    write(path)
    with locked(path) as descriptor:
        list(journal.catch_up(descriptor))
        os.ftruncate(descriptor, 3)
        with pytest.raises(RoundLogError, match="has shrunk from"):
            list(journal.catch_up(descriptor))


def test_a_record_that_the_disk_refuses_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    write(path)
    journal = Journal(path)

    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with locked(path) as descriptor:
        list(journal.catch_up(descriptor))
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="Input/output"):
            journal.append(descriptor, {"n": 4})
        monkeypatch.undo()
    assert load(path) == RECORDS
