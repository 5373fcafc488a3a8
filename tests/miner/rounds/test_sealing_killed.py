"""P5: whatever is killed when, a round is there whole or not at all."""

from pathlib import Path

from miner.rounds import RoundLog, RoundWriter
from tests.miner.rounds.killing import kill_everywhere
from tests.miner.rounds.round_samples import bytes_of, make_draft, make_groups, make_log


def test_a_kill_at_every_step_of_sealing_leaves_the_round_whole_or_absent(tmp_path: Path) -> None:
    make_log(tmp_path / "log", num_rounds=1)
    outcomes = []
    for remains in kill_everywhere("seal", tmp_path / "log", tmp_path / "work"):
        log = RoundLog(remains.root)
        sealed = log.sealed_ids()
        assert sealed in ([1], [1, 2])
        assert log.verify() == []
        for round_id in sealed:
            assert bytes_of(log.read(round_id)) == bytes_of(make_groups(10, seed=round_id))
        if remains.answers:
            assert sealed == [1, 2], "a round that was reported as sealed is gone"
        outcomes.append((len(sealed), remains.finished))

        writer = RoundWriter.open(log)
        writer.seal(make_groups(10, seed=writer.next_round_id), make_draft())
        assert [path.name for path in log.rounds_dir.iterdir() if path.suffix] == []
        assert log.verify() == []
    assert {(1, False), (2, False), (2, True)} <= set(outcomes), "kills on both sides of the seal"
    assert len(outcomes) > 20


def test_a_kill_at_every_step_of_retention_loses_no_round_that_is_kept(tmp_path: Path) -> None:
    make_log(tmp_path / "log", num_rounds=5)
    outcomes = set()
    for remains in kill_everywhere("retain", tmp_path / "log", tmp_path / "work"):
        log = RoundLog(remains.root)
        sealed = log.sealed_ids()
        assert {2, 4, 5} <= set(sealed)
        assert log.verify() == []
        for round_id in sealed:
            assert bytes_of(log.read(round_id)) == bytes_of(make_groups(10, seed=round_id))
        outcomes.add(tuple(sealed))

        RoundWriter.open(log).retain(2, {2})
        assert sorted(path.name for path in log.rounds_dir.iterdir()) == [
            log.folder(round_id).name for round_id in (2, 4, 5)
        ]
    assert outcomes == {(1, 2, 3, 4, 5), (2, 3, 4, 5), (2, 4, 5)}


def test_a_kill_while_taking_over_never_gives_a_generation_twice(tmp_path: Path) -> None:
    make_log(tmp_path / "log", num_rounds=1)
    for remains in kill_everywhere("open_writer", tmp_path / "log", tmp_path / "work"):
        taken = remains.answers[0] if remains.answers else 1
        assert RoundWriter.open(RoundLog(remains.root)).generation > taken
