"""A sealed round reads the same for ever, or an error says which file is to blame."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from miner.errors import DamagedRoundError, DiskError, RoundExpiredError, RoundLogError
from miner.rounds import RoundLog
from miner.rounds.log import MANIFEST_FILE
from tests.miner.rounds.round_samples import bytes_of, make_draft, make_groups, make_log


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def remove(path: Path) -> None:
    path.unlink()


def test_a_round_reads_back_to_the_byte_in_every_process_that_opens_the_log(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=2)
    for reader in (log, RoundLog(tmp_path)):
        assert reader.sealed_ids() == [1, 2]
        for round_id in (1, 2, 1):
            assert bytes_of(reader.read(round_id)) == bytes_of(make_groups(10, seed=round_id))
    assert [chunk.num_groups for chunk in log.manifest(1).chunks] == [4, 4, 2]
    assert log.manifest(1).num_rows == make_groups(10, seed=1).num_rows


def test_a_round_cannot_be_changed_through_what_was_read(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    with pytest.raises(ValueError, match="read-only"):
        log.read(1).row_ids_R[0] = 5


@pytest.mark.parametrize("file", ["chunk-00000.arrow", "chunk-00002.arrow", MANIFEST_FILE])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_bit, r"does not match its sha256|digest should be"),
        (truncate, r"it has \d+ bytes, the manifest says \d+|the manifest's end is missing"),
        (remove, r"cannot be read \(No such file or directory\)"),
    ],
)
def test_damage_is_an_error_that_names_the_file_and_never_a_shorter_round(
    tmp_path: Path, damage: Callable[[Path], None], reason: str, file: str
) -> None:
    make_log(tmp_path, num_rounds=2)
    log = RoundLog(tmp_path)
    damage(log.folder(1) / file)
    path = re.escape(str(log.folder(1) / file))
    with pytest.raises(DamagedRoundError, match=f"{path}: .*({reason})"):
        log.read(1)
    assert any(str(log.folder(1) / file) in problem for problem in log.verify())
    assert bytes_of(log.read(2)) == bytes_of(make_groups(10, seed=2))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE, errno.EIO])
def test_a_disk_that_fails_for_a_moment_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    make_log(tmp_path, num_rounds=1)
    log = RoundLog(tmp_path)

    def refuse(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        for read in (log.read, log.manifest):
            with pytest.raises(DiskError, match=os.strerror(number)):
                read(1)
    assert bytes_of(log.read(1)) == bytes_of(make_groups(10, seed=1))
    chunk = log.folder(1) / "chunk-00001.arrow"
    whole = Path.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda p: refuse(p) if p == chunk else whole(p))
        (problem,) = RoundLog(tmp_path).verify()
        assert str(chunk) in problem
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(DiskError, match=os.strerror(number)):
            log.sealed_ids()


def test_verify_names_every_damaged_chunk(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=1)
    assert log.verify() == []
    flip_bit(log.folder(1) / "chunk-00000.arrow")
    remove(log.folder(1) / "chunk-00001.arrow")
    problems = log.verify()
    assert ["chunk-00000" in problems[0], "chunk-00001" in problems[1]] == [True, True]


def test_verify_tells_a_round_that_was_exchanged_for_another_valid_one(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path / "log", num_rounds=2)
    other, writer = make_log(tmp_path / "other", num_rounds=0)
    (other.root / "LOG.json").write_bytes((log.root / "LOG.json").read_bytes())
    other = RoundLog(other.root)
    writer.log = other
    writer.seal(make_groups(10, seed=77), make_draft())
    shutil.rmtree(log.folder(1))
    shutil.copytree(other.folder(1), log.folder(1))
    (problem,) = RoundLog(log.root).verify()
    assert problem.startswith(str(log.folder(2) / MANIFEST_FILE))
    assert "breaks the chain" in problem


def test_a_round_of_another_log_is_not_taken_for_ours(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path / "log", num_rounds=2)
    other, _ = make_log(tmp_path / "other", num_rounds=1)
    shutil.rmtree(log.folder(1))
    shutil.copytree(other.folder(1), log.folder(1))
    with pytest.raises(DamagedRoundError, match=f"of log {other.log_id}, not of log {log.log_id}"):
        RoundLog(log.root).read(1)


def test_a_round_that_retention_removed_has_expired_and_the_kept_ones_are_named(
    tmp_path: Path,
) -> None:
    log, writer = make_log(tmp_path, num_rounds=6)
    log.read(1)
    writer.retain(3, needed={2})
    with pytest.raises(RoundExpiredError, match="round 1 has expired: rounds 2, 4-6 are kept"):
        log.read(1)
    with pytest.raises(RoundExpiredError, match="round 7 has not been sealed: rounds 2, 4-6"):
        log.manifest(7)


def test_a_round_that_vanished_otherwise_is_damage(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path, num_rounds=3)
    shutil.rmtree(log.folder(2))
    with pytest.raises(DamagedRoundError, match="00000002 is missing, and retention did not"):
        log.read(2)
    assert log.verify() == [f"{log.folder(2)} is missing, and retention did not remove it"]


def test_an_empty_log_has_no_newest_round(tmp_path: Path) -> None:
    log = RoundLog(tmp_path)
    assert (log.newest(), log.sealed_ids(), log.verify()) == (None, [], [])
    with pytest.raises(RoundExpiredError, match="round 1 has not been sealed: no round is kept"):
        log.read(1)


def test_a_log_keeps_its_id_and_two_logs_differ(tmp_path: Path) -> None:
    assert RoundLog(tmp_path / "a").log_id == RoundLog(tmp_path / "a").log_id
    assert RoundLog(tmp_path / "a").log_id != RoundLog(tmp_path / "b").log_id


def test_a_folder_without_a_log_is_told_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(RoundLogError, match="there is no round log in"):
        RoundLog(tmp_path, must_exist=True)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_log_file_is_named(tmp_path: Path) -> None:
    RoundLog(tmp_path)
    (tmp_path / "LOG.json").write_text("{")
    with pytest.raises(RoundLogError, match=r"LOG\.json cannot be read"):
        RoundLog(tmp_path)
    (tmp_path / "LOG.json").write_text(json.dumps({"schema_version": 1, "log_id": "a"}))
    (tmp_path / "EXPIRED.json").write_text("[1]")
    with pytest.raises(RoundLogError, match=r"EXPIRED\.json cannot be read"):
        RoundLog(tmp_path).verify()
