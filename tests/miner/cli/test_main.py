"""The command line as a user calls it: real processes, one-line errors, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def miner(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "miner", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def dataset(folder: Path, identities: list[str]) -> str:
    path = folder / "data.parquet"
    ids = [f"s{i}" for i in range(len(identities))]
    images = [b"x"] * len(identities)
    pq.write_table(pa.table({"sample_id": ids, "identity": identities, "image": images}), path)
    return f"dataset.uri={path}"


def test_glyphs_then_ingest_make_a_store(tmp_path: Path) -> None:
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    chosen = [str(fonts / name) for name in ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf")]
    options = ("--fonts", chosen[0], "--fonts", chosen[1])
    made = miner("glyphs", "--out", str(tmp_path / "g"), *options)
    assert made.returncode == 0, made.stderr
    assert "characters in 2 fonts" in made.stdout
    uri = f"dataset.uri={tmp_path / 'g' / 'glyphs.parquet'}"
    state = f"state_dir={tmp_path / 's'}"
    wrote = miner("ingest", "--set", uri, "--set", state)
    assert wrote.returncode == 0, wrote.stderr
    again = miner("ingest", "--set", uri, "--set", state)
    assert "was there already" in again.stdout.replace("\n", " ")
    assert json.loads((tmp_path / "s" / "store" / "STORE.json").read_text())["num_rows"] > 1000


def test_malformed_failpoints_end_in_one_line_and_the_code_of_a_wrong_configuration() -> None:
    environment = {**os.environ, "COALFACE_FAILPOINTS": "runs.plan.begin=sleep(1.2.3)"}
    command = [sys.executable, "-m", "miner", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("ConfigError: COALFACE_FAILPOINTS: 'runs.plan.begin=sleep(1.2.3)")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "told", "code"),
    [
        (["dataset.identity_column=person"], "person", 1),
        (["dataset.uri=/nowhere/at/all.parquet"], "/nowhere/at/all.parquet", 1),
        (["selection.stratgy=random"], "did you mean 'strategy'", 2),
    ],
)
def test_wrong_input_ends_in_one_line_and_a_code(
    tmp_path: Path, overrides: list[str], told: str, code: int
) -> None:
    settings = [dataset(tmp_path, ["a", "a", "b"]), f"state_dir={tmp_path / 's'}", *overrides]
    done = miner("ingest", *(part for setting in settings for part in ("--set", setting)))
    assert done.returncode == code
    assert told in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr


def test_serve_refuses_a_dataset_without_two_identities_before_it_starts_anything(
    tmp_path: Path,
) -> None:
    settings = [dataset(tmp_path, ["a", "a", "a"]), f"state_dir={tmp_path / 's'}"]
    done = miner("serve", *(part for setting in settings for part in ("--set", setting)))
    assert done.returncode == 1
    assert "DatasetError" in done.stderr
    assert "ray" not in done.stderr.lower()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("serving.tokens_file=nowhere/tokens", "nowhere/tokens"),
        ("serving.tls={certificate_file: nowhere/c, key_file: k}", "neither tokens nor client"),
        ("serving.host=0.0.0.0", "allow_insecure_bind"),
    ],
)
def test_serve_refuses_wrong_settings_of_security_before_it_starts_anything(
    tmp_path: Path, override: str, told: str
) -> None:
    settings = [dataset(tmp_path, ["a", "a", "b", "b"]), f"state_dir={tmp_path / 's'}", override]
    done = miner("serve", *(part for setting in settings for part in ("--set", setting)))
    assert done.returncode == 2
    assert told in done.stderr
    assert not (tmp_path / "s").exists()


def test_the_resolved_configuration_can_be_printed(tmp_path: Path) -> None:
    done = miner("serve", "--set", "state_dir=/s", "--set", "dataset.uri=/d", "--print-config")
    assert done.returncode == 0
    assert "strategy: rank_window" in done.stdout


def test_an_unknown_command_is_a_usage_error() -> None:
    assert miner("mein").returncode == 2


def test_a_sheet_of_a_folder_that_is_not_there_makes_none(tmp_path: Path) -> None:
    done = miner("sheet", str(tmp_path / "none"), "--out", str(tmp_path / "sheet.png"))
    assert done.returncode == 1
    assert "none" in done.stderr
    assert not list(tmp_path.iterdir())
