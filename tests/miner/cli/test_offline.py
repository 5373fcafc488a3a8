"""``mine``, ``export`` and ``show`` as a user calls them: real files, processes and exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from miner.rounds import RoundLog
from tests.miner.app.offline.offline_samples import World, files_below, make_world
from tests.miner.app.offline.service_folder import make_service

ENGINES = {"ray", "grpc", "torch", "google", "matplotlib", "trainer", "protos"}


def miner(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "miner", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


def mine(world: World, folder: Path, *more: object) -> subprocess.CompletedProcess[str]:
    files = world.save(folder / "in")
    named = [part for name, path in files.items() for part in (f"--{name}", path)]
    return miner("mine", *named, "--out", folder / "out", *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds in ``out``."""
    place, world = tmp_path_factory.mktemp("offline"), make_world(200, 12)
    for number in (1, 2):
        done = mine(world, place, "--set", "selection.num_candidates=80")
        assert done.returncode == 0, done.stderr
        assert f"round {number}: " in done.stdout
        assert done.stdout.count("\n") == 1
        assert "199/199" in done.stderr, "progress of the search"
    return place


def test_it_seals_rounds_in_the_folder(folder: Path) -> None:
    log = RoundLog(folder / "out", must_exist=True)
    assert log.sealed_ids() == [1, 2]
    assert log.verify() == []
    assert log.manifest(2).config["num_candidates"] == 80


def test_export_writes_what_the_suffix_or_the_option_says(folder: Path, tmp_path: Path) -> None:
    done = miner("export", folder / "out", "--round", 1, "--out", tmp_path / "t.parquet")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.num_rows == RoundLog(folder / "out").manifest(1).num_triplets
    assert f"round 1: {table.num_rows:,} rows: " in done.stdout
    done = miner(
        *("export", folder / "out", "--out", tmp_path / "t.txt", "--format", "jsonl"),
        *("--form", "n-tuple", "--negatives", 2),
        *("--text", f"{folder / 'out' / 'samples.parquet'}:id"),
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "t.txt").read_text().splitlines()
    assert lines[0].startswith('{"anchor": "s')
    assert "round 2: " in done.stdout
    refused = miner("export", folder / "out", "--out", tmp_path / "t.csv")
    assert refused.returncode == 2
    assert "--format" in refused.stderr
    refused = miner("export", folder / "out", "--out", tmp_path / "t.jsonl", "--negatives", 2)
    assert refused.returncode == 2
    assert "n-tuple" in refused.stderr


@pytest.mark.parametrize("width", [40, 80, 200])
def test_show_fits_the_width_and_needs_no_terminal(folder: Path, width: int) -> None:
    done = miner("show", folder / "out", COLUMNS=str(width))
    assert done.returncode == 0, done.stderr
    assert "Round 2" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= width
    if width >= 80:
        for part in ("rank_window", "tier 0, strategy", "Hardness", "searching", "samples as neg"):
            assert part in done.stdout


def test_show_of_a_service_s_round(tmp_path: Path) -> None:
    make_service(tmp_path / "state")
    done = miner("show", tmp_path / "state", "--round", 1)
    assert done.returncode == 0, done.stderr
    assert "nothing was searched" in done.stdout


@pytest.mark.parametrize("command", ["mine", "export", "show"])
def test_no_engine_is_loaded(command: str, folder: Path, tmp_path: Path) -> None:
    files = make_world().save(tmp_path / "in")
    arguments = {
        "mine": [
            *("--embeddings", files["embeddings"], "--identities", files["identities"]),
            *("--out", str(tmp_path / "out")),
        ],
        "export": [str(folder / "out"), "--out", str(tmp_path / "t.jsonl")],
        "show": [str(folder / "out")],
    }
    code = (
        "import sys, atexit\n"
        "names = lambda: {name.partition('.')[0] for name in sys.modules}\n"
        "atexit.register(lambda: print('LOADED', *sorted(names())))\n"
        f"sys.argv = ['coalface-miner', {command!r}, *{arguments[command]!r}]\n"
        "from miner.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert "pyarrow" in loaded
    assert not loaded & ENGINES
    assert ("faiss" in loaded) == (command == "mine")


def test_bad_input_ends_in_one_line_and_leaves_the_rounds(tmp_path: Path) -> None:
    world = make_world()
    assert mine(world, tmp_path).returncode == 0
    before = files_below(tmp_path / "out")
    world.embeddings[[3, 8], 0] = np.nan
    done = mine(world, tmp_path)
    assert done.returncode == 1
    for part in ("DatasetError", "embeddings.npy", "2 rows", "[3, 8]", "s8"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert files_below(tmp_path / "out") == before


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    done = mine(make_world(), tmp_path)
    assert done.returncode == 1
    assert "RoundLogError" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--embeddings"),
        (("--set", "selection.stratgy=random"), "did you mean 'strategy'"),
        (("--set", "dataset.uri=x"), "unknown key 'dataset'"),
    ],
)
def test_wrong_use_ends_with_code_2(arguments: tuple[str, ...], told: str) -> None:
    done = miner("mine", *arguments)
    assert done.returncode == 2
    assert told in done.stderr


def test_the_printed_configuration_means_the_same_when_read_again(tmp_path: Path) -> None:
    printed = miner("mine", "--set", "seed=7", "--print-config")
    assert printed.returncode == 0, printed.stderr
    assert "groups_per_round" not in yaml.safe_load(printed.stdout)["selection"]
    (tmp_path / "c.yaml").write_text(printed.stdout)
    assert miner("mine", "-c", tmp_path / "c.yaml", "--print-config").stdout == printed.stdout
    few = miner("mine", "--set", "selection.groups_per_round=9", "--print-config")
    assert yaml.safe_load(few.stdout)["selection"]["groups_per_round"] == 9
