"""Verify finds every damaged byte and names its file; sound or unfinished things are none."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.app.verify import verify_state
from miner.data import RowStore
from miner.errors import RoundLogError
from miner.rounds import RoundLog
from miner.rounds.checked import decode_number, decode_object, encode_number, encode_object
from miner.serving.plan import RUN_KEYS
from miner.serving.runs import RunStore
from miner.workers.snapshot import SnapshotKey, SnapshotStore
from tests.miner.app.state_folder import make_state
from tests.trainer.feed.served_miner import ServerThread, make_folder
from trainer.feed import TripletFeed

EMPTY_BY_DESIGN = {"LOCK", ".LOCK"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_state(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def copy(sound: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(sound[0], tmp_path / "log")
    shutil.copytree(sound[1], tmp_path / "store")
    return tmp_path / "log", tmp_path / "store"


def problems(state: Path, store: Path, *, quick: bool = False) -> list[str]:
    return [p for part in verify_state(state, store, quick=quick) for p in part.problems]


def files_of(*folders: Path) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.name not in EMPTY_BY_DESIGN
    )


def content_of(*folders: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files_of(*folders)}


def flip(path: Path, place: int, mask: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= mask
    path.write_bytes(content)


def test_a_sound_folder_has_no_problem_and_is_not_changed(sound: tuple[Path, Path]) -> None:
    before = content_of(*sound)
    parts = list(verify_state(*sound))
    assert [part.problems for part in parts] == [[]] * 5
    told = [part.what for part in parts]
    assert told == ["3 rounds", "2 runs", "row store", "1 snapshot", "1 copy of weights"]
    assert problems(*sound, quick=True) == []
    assert content_of(*sound) == before


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_a_byte_that_is_flipped_anywhere_is_found_and_its_file_is_named(
    sound: tuple[Path, Path], data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(files_of(*sound)))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    mask = data.draw(st.integers(1, 255))
    flip(path, place, mask)
    try:
        found = problems(*sound)
    finally:
        path.write_bytes(content)
    assert found
    assert any(path.name in problem for problem in found), found


def test_every_byte_of_the_small_files_is_guarded(sound: tuple[Path, Path]) -> None:
    small = [path for path in files_of(*sound) if path.stat().st_size < 120]
    assert {"GENERATION", "EXPIRED.json", "COMMITTED"} <= {path.name for path in small}
    masks = random.Random(1)
    for path in small:
        content = path.read_bytes()
        for place in range(len(content)):
            flip(path, place, masks.randrange(1, 256))
            found = problems(*sound)
            path.write_bytes(content)
            assert found, (path, place)


def test_a_file_that_is_cut_short_or_gone_is_named(copy: tuple[Path, Path]) -> None:
    for path in files_of(*copy):
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        cut = problems(*copy)
        path.unlink()
        gone = problems(*copy) if path.name != "LOG.json" else ["it is another error"]
        path.write_bytes(content)
        if path.name == "plan.jsonl":  # a write that was cut off: the next start drops it
            assert all("COMMITTED" in problem for problem in cut)
        else:
            assert cut, path
        may_be_absent = {"COMMITTED", "weights.json", "KEY.json"}
        is_receipt = path.parent.parent.name == "snapshots"
        assert gone or path.name in may_be_absent or is_receipt, path


def test_quick_skips_the_content_and_nothing_else(copy: tuple[Path, Path]) -> None:
    state, store = copy
    chunk = RoundLog(state).folder(5) / "chunk-00000.arrow"
    for path in (chunk, store / "payload.arrow"):
        flip(path, path.stat().st_size // 2, 1)
    assert problems(state, store, quick=True) == []
    assert len(problems(state, store)) == 2
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert any(str(chunk) in problem for problem in problems(state, store, quick=True))


def test_a_plan_with_a_gap_or_an_unknown_round_is_told_by_its_steps(
    copy: tuple[Path, Path],
) -> None:
    state, store = copy
    plan = state / "runs" / "run-1" / "plan.jsonl"
    lines = plan.read_bytes().splitlines(keepends=True)
    plan.write_bytes(lines[0] + b"".join(lines[2:]))
    assert any("starts at step 8, not at 4" in problem for problem in problems(state, store))
    plan.write_bytes(b"".join(lines))
    shutil.rmtree(RoundLog(state).folder(5))
    told = [p for p in problems(state, store) if "run-1" in p]
    assert told == [
        f"{plan}: steps 8 to 11 were planned on round 5, which the log does not know",
    ]


def test_a_line_under_way_is_no_problem(copy: tuple[Path, Path]) -> None:
    state, store = copy
    plan = state / "runs" / "run-2" / "plan.jsonl"
    content = plan.read_bytes()
    for length in (1, 10, 40, content.index(b"\n")):
        plan.write_bytes(content + content[:length])
        assert problems(state, store) == []


def test_files_of_earlier_versions_are_read_and_are_no_problem(copy: tuple[Path, Path]) -> None:
    state, store = copy
    for path in (*state.glob("runs/*/RUN.json"), *state.glob("runs/*/COMMITTED")):
        content = path.read_bytes()
        is_run = path.name == "RUN.json"
        plain = decode_object(content, RUN_KEYS) if is_run else decode_number(content)
        path.write_text(json.dumps(plain))
    (state / "GENERATION").write_text("7")
    (state / "EXPIRED.json").write_text("[[1, 2]]")
    (state / "LOG.json").write_text(
        f'{{"schema_version": 1, "log_id": "{RoundLog(state).log_id}"}}'
    )
    manifest = RowStore.open(store).manifest
    text = manifest.model_dump_json(indent=2, exclude={"sha256"}) + "\n"
    (store / "STORE.json").write_text(text)
    assert problems(state, store) == []
    assert RunStore(state, 4).get("run-1").committed_step == 9


def test_a_folder_that_a_service_works_on_can_be_checked(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    miner = ServerThread(folder)
    with TripletFeed(miner.address, run_id="r", batch_rows=24, num_steps=200) as feed:
        for batch in feed:
            if batch.step % 50 == 0:
                assert problems(folder / "log", folder / "store") == []
    miner.stop()


def test_copies_that_a_service_removes_meanwhile_are_passed_over_and_unreadable_ones_told(
    copy: tuple[Path, Path],
) -> None:
    weights = copy[0] / "weights"
    (weights / "removed.safetensors").symlink_to("nowhere")  # listed, and not there when opened
    assert problems(*copy) == []
    unreadable = weights / "unreadable.safetensors"
    unreadable.mkdir()
    assert problems(*copy) == [f"{unreadable} cannot be read: Is a directory"]
    (copy[0] / "weights.json").unlink()
    (copy[0] / "weights.json").mkdir()
    assert any("weights.json cannot be read" in problem for problem in problems(*copy))


def test_a_snapshot_that_a_service_removes_meanwhile_is_passed_over(
    copy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing_chunks = SnapshotStore.missing_chunks

    def removed_meanwhile(self: SnapshotStore, key: SnapshotKey) -> list[int]:
        self.prune(0)
        return missing_chunks(self, key)

    monkeypatch.setattr(SnapshotStore, "missing_chunks", removed_meanwhile)
    assert problems(*copy) == []


def test_a_folder_without_a_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RoundLogError, match="there is no round log"):
        problems(tmp_path, tmp_path)


@given(st.integers(0, 10**9), st.data())
def test_a_checked_value_is_read_exactly_or_not_at_all(value: int, data: st.DataObject) -> None:
    number, tree = encode_number(value), encode_object({"a": value, "b": "text"})
    assert decode_number(number) == value
    assert decode_object(tree, ("a", "b")) == {"a": value, "b": "text"}
    assert json.loads(tree).keys() == {"a", "b", "checksum"}, "it stays JSON"
    for content, decode in (
        (number, decode_number),
        (tree, lambda c: decode_object(c, ("a", "b"))),
    ):
        damaged = bytearray(content)
        damaged[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it is, it is no value
            decode(bytes(damaged))


def test_the_command_prints_one_problem_a_line_and_ends_with_a_code(
    copy: tuple[Path, Path],
) -> None:
    state, store = copy

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "miner", "verify", str(state), "--store", str(store)]
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, timeout=60
        )

    sound = run()
    assert (sound.returncode, sound.stderr) == (0, "")
    assert sound.stdout == (
        f"{state}: 3 rounds, 2 runs, row store, 1 snapshot, 1 copy of weights: all is well\n"
    )
    flip(store / "payload.arrow", 300, 1)
    flip(state / "runs" / "run-2" / "plan.jsonl", 40, 1)
    damaged = run()
    assert damaged.returncode == 1
    lines = damaged.stdout.splitlines()
    assert [("plan.jsonl" in line, "payload.arrow" in line) for line in lines] == [
        (True, False),
        (False, True),
    ]
    assert damaged.stderr.endswith("2 problems\n")
    assert run("--quick").stdout.count("\n") == 1
