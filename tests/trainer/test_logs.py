"""The trainer's JSON log lines parse and carry the rank, the run and the step."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.feed.served_miner import ServerThread, free_port, make_folder
from trainer.logs import JsonFormatter


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainer", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, **environment},
    )


def settings(out: Path, address: str, **more: object) -> list[str]:
    values = {
        "run_id": "run",
        "out": out,
        "steps": 2,
        "miner.address": address,
        "miner.patience_s": 1,
        **more,
    }
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@given(st.text(), st.floats() | st.text() | st.binary() | st.lists(st.floats()))
def test_whatever_is_logged_is_one_line_that_parses(message: str, value: object) -> None:
    record = logging.makeLogRecord({"name": "trainer.x", "msg": message, "loss": value})
    line = JsonFormatter(rank=1).format(record)
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["message"], parsed["logger"], parsed["rank"]) == (message, "trainer.x", 1)
    assert "loss" in parsed


def test_a_run_that_fails_says_so_in_json_with_the_run_and_the_rank(tmp_path: Path) -> None:
    arguments = settings(tmp_path, f"127.0.0.1:{free_port()}")
    done = run("--log-format", "json", "train", *arguments, RANK="0")
    assert done.returncode == 1
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert events[-1]["error"] == "MinerUnreachableError"
    assert {event["rank"] for event in events} == {0}


def test_text_stays_the_default(tmp_path: Path) -> None:
    done = run("train", *settings(tmp_path, f"127.0.0.1:{free_port()}"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: no answer from the miner")


def test_steps_are_logged_with_their_round_and_loss(tmp_path: Path) -> None:
    miner = ServerThread(make_folder(tmp_path / "miner"))
    pictures = settings(
        tmp_path,
        miner.address,
        **{
            "batch_rows": 24,
            "device": "cpu",
            "encoder.build": "tests.trainer.plain_bytes:build",
            "encoder.preprocess": "tests.trainer.plain_bytes:preprocess",
            "announce.every_steps": 0,
        },
    )
    done = run("train", *pictures, COALFACE_LOG_FORMAT="json")
    miner.stop()
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    last = next(event for event in events if event["logger"] == "trainer.progress")
    assert (last["run"], last["step"], last["round"], last["rank"]) == ("run", 1, 2, 0)
    assert last["loss"] > 0
    assert last["strategy"] == "random"
