"""Verify tells whether an archive could be restored, and what it lacks of the folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from miner.app.verify import verify_state
from miner.rounds import RoundLog, RoundWriter
from miner.rounds.archive import Archive
from miner.rounds.objects import Objects
from miner.serving.plan import RunParameters
from miner.serving.run_archive import RunArchive
from miner.serving.runs import RunStore
from tests.miner.rounds.archived import open_archived, seal_next


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder, with its archive beside it."""
    objects = Objects(f"file://{tmp_path}/archive")
    writer = open_archived(tmp_path / "state", Archive(objects))
    for _ in range(3):
        seal_next(writer)
    writer.retain(2, set())
    runs = RunStore(tmp_path / "state", 4, RunArchive(objects))
    run, _ = runs.open(RunParameters("run", batch_rows=16))
    run.plan_some(11, 1, writer.log)
    return tmp_path / "state"


def problems(state: Path) -> list[str]:
    uri = f"file://{state.parent}/archive"
    parts = list(verify_state(state, archive_uri=uri))
    assert [part.what for part in parts][2] == "archive"
    assert [p for part in parts if part.what != "archive" for p in part.problems] == []
    return parts[2].problems


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sound_archive_has_no_problem_and_is_not_changed(state: Path) -> None:
    before = content_of(state.parent)
    assert problems(state) == []
    assert content_of(state.parent) == before


def test_every_object_that_is_damaged_or_missing_is_named(state: Path) -> None:
    archive = state.parent / "archive"
    files = sorted(path for path in archive.rglob("*") if path.is_file())
    newest = sorted((archive / "log").iterdir())[-1]
    for path in files:
        if path.parent == newest.parent and path != newest:
            continue  # of entries the newest is read
        content = path.read_bytes()
        path.write_bytes(content[:-20] + b"?" + content[-19:])
        assert str(path.relative_to(archive)) in "\n".join(problems(state)), path
        path.unlink()
        assert problems(state) != [], path
        path.write_bytes(content)
    assert problems(state) == []


def test_what_the_archive_lacks_of_the_folder_is_counted(state: Path) -> None:
    log = RoundLog(state)
    seal_next(RoundWriter.open(log))
    RunStore(state, 4).get("run").plan_some(19, 1, log)
    lacking, strides = problems(state)
    assert "lacks round 4" in lacking
    assert "lacks 2 strides of run 'run'" in strides


def test_an_archive_that_is_empty_or_of_another_log_is_a_problem(
    state: Path, tmp_path: Path
) -> None:
    archive = state.parent / "archive"
    shutil.rmtree(archive)
    (problem,) = problems(state)
    assert "there is no archive" in problem
    assert list(archive.rglob("*")) == []
    seal_next(open_archived(tmp_path / "other", Archive(Objects(f"file://{archive}"))))
    assert "lacks round" in "\n".join(problems(state))


def test_the_command_checks_an_archive(state: Path) -> None:
    command = [sys.executable, "-m", "miner", "verify", str(state), "--archive"]
    uri = f"file://{state.parent}/archive"
    done = subprocess.run([*command, uri], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "archive" in done.stdout
    shutil.rmtree(state.parent / "archive" / "rounds")
    done = subprocess.run([*command, uri], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MANIFEST.json is missing or damaged" in done.stdout
