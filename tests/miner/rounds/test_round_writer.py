"""Rounds are sealed by the newest writer only, whole or not at all, and kept while needed."""

import os
from pathlib import Path
from typing import Any

import pytest

from miner.errors import RoundLogError, StaleWriterError
from miner.rounds import RoundLog, RoundsConfig, RoundWriter
from miner.types import Groups
from tests.miner.rounds.round_samples import bytes_of, make_draft, make_groups, make_log


def test_rounds_count_from_one_and_each_names_the_one_before(tmp_path: Path) -> None:
    log, writer = make_log(tmp_path, num_rounds=0)
    assert writer.next_round_id == 1
    first = writer.seal(make_groups(3), make_draft())
    second = RoundWriter.open(RoundLog(tmp_path)).seal(make_groups(3), make_draft(model_step=9))
    assert (first.round_id, first.generation, first.previous_sha256) == (1, 1, "")
    assert (second.round_id, second.generation, second.previous_sha256) == (2, 2, first.sha256)
    assert log.manifest(2) == second
    assert second.model_step == 9


def test_an_older_writer_can_neither_seal_nor_remove(tmp_path: Path) -> None:
    log, old = make_log(tmp_path, num_rounds=3)
    new = RoundWriter.open(log)
    with pytest.raises(StaleWriterError, match="generation 1 may not seal round 4: generation 2"):
        old.seal(make_groups(3), make_draft())
    with pytest.raises(StaleWriterError, match="generation 1 may not remove rounds"):
        old.retain(1, set())
    assert log.sealed_ids() == [1, 2, 3]
    assert [path.name for path in log.rounds_dir.iterdir() if path.suffix] == []
    assert new.seal(make_groups(3), make_draft()).round_id == 4


def test_a_writer_that_is_overtaken_while_it_builds_cannot_seal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, old = make_log(tmp_path, num_rounds=1)
    build = RoundWriter._write_chunks

    def overtaken(self: RoundWriter, building: Path, groups: Groups, archived: str) -> Any:
        yield from build(self, building, groups, archived)
        monkeypatch.undo()
        RoundWriter.open(RoundLog(tmp_path)).seal(make_groups(5, seed=50), make_draft())

    monkeypatch.setattr(RoundWriter, "_write_chunks", overtaken)
    with pytest.raises(StaleWriterError, match="generation 2 has taken over"):
        old.seal(make_groups(3), make_draft())
    assert log.sealed_ids() == [1, 2]
    assert bytes_of(log.read(2)) == bytes_of(make_groups(5, seed=50))
    assert log.verify() == []


def test_a_disk_that_refuses_at_any_point_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, writer = make_log(tmp_path, num_rounds=1)
    fsync, left = os.fsync, [0]

    def refuse_later(descriptor: int) -> None:
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        fsync(descriptor)

    fsyncs_before_rename = 3 + 1 + 1  # chunks, manifest, folder
    for point in range(fsyncs_before_rename):
        left[0] = point
        monkeypatch.setattr(os, "fsync", refuse_later)
        with pytest.raises(RoundLogError, match="No space left on device"):
            writer.seal(make_groups(10, seed=2), make_draft())
        monkeypatch.undo()
        assert [path.name for path in log.rounds_dir.iterdir()] == ["00000001"]
    assert writer.seal(make_groups(10, seed=2), make_draft()).round_id == 2
    assert log.verify() == []


def test_a_round_without_groups_is_refused(tmp_path: Path) -> None:
    _, writer = make_log(tmp_path, num_rounds=0)
    with pytest.raises(RoundLogError, match="without groups"):
        writer.seal(make_groups(0), make_draft())


def test_what_killed_writers_left_is_removed_by_the_next(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    for name in ("00000002.g1.building", "00000001.expired"):
        (log.rounds_dir / name).mkdir()
        (log.rounds_dir / name / "chunk-00000.arrow").write_bytes(b"half")
    assert log.sealed_ids() == [1]
    RoundWriter.open(log)
    assert [path.name for path in log.rounds_dir.iterdir()] == ["00000001"]


def test_retention_keeps_the_newest_and_the_needed_and_ids_go_on(tmp_path: Path) -> None:
    log, writer = make_log(tmp_path, num_rounds=6)
    assert writer.retain(2, {1, 3}) == [2, 4]
    assert log.sealed_ids() == [1, 3, 5, 6]
    assert writer.retain(2, {3}) == [1]
    assert writer.retain(2, {3}) == []
    assert log.expired_ranges() == [(1, 2), (4, 4)]
    assert log.verify() == []
    assert writer.retain(0, set()) == [3, 5], "the newest stays, whatever is asked for"
    assert writer.next_round_id == 7


def test_damage_to_the_generation_is_named(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=0)
    (tmp_path / "GENERATION").write_text("two")
    with pytest.raises(RoundLogError, match="GENERATION cannot be read"):
        RoundWriter.open(log)


def test_chunks_hold_the_configured_number_of_groups(tmp_path: Path) -> None:
    writer = RoundWriter.open(RoundLog(tmp_path), RoundsConfig(chunk_groups=3))
    chunks = writer.seal(make_groups(7), make_draft()).chunks
    assert [(chunk.first_group, chunk.num_groups) for chunk in chunks] == [(0, 3), (3, 3), (6, 1)]
