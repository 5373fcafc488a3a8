"""Failpoints by themselves: what the environment may say, and what then happens."""

import errno
import os
import signal
import subprocess
import sys
import time
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest

from miner import failpoints
from miner.errors import ConfigError
from miner.failpoints import FAILPOINTS, arm, reach, reach_write


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm("")


def in_a_process(code: str, settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, failpoints.ENVIRONMENT: settings}
    command = [sys.executable, "-c", f"from miner.failpoints import *; {code}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_nothing_happens_unless_it_is_asked_for(tmp_path: Path) -> None:
    for name in FAILPOINTS:
        reach(name)
    seconds = min(timeit.repeat(lambda: reach("runs.plan.begin"), number=10_000, repeat=3)) / 10_000
    assert seconds < 2e-6


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS", "EIO"])
def test_an_error_is_the_one_that_the_disk_would_give(name: str) -> None:
    arm(f"runs.plan.begin=error({name})")
    with pytest.raises(OSError, match=r"failpoint runs\.plan\.begin") as caught:
        reach("runs.plan.begin")
    assert caught.value.errno == getattr(errno, name)
    reach("runs.plan.recorded")


def test_a_count_picks_one_passage() -> None:
    arm("3*runs.plan.begin=error(EIO)")
    reach("runs.plan.begin")
    reach("runs.plan.begin")
    with pytest.raises(OSError, match="failpoint"):
        reach("runs.plan.begin")
    reach("runs.plan.begin")


def test_sleep_takes_its_time() -> None:
    arm("runs.plan.begin=sleep(0.05)")
    begin_s = time.monotonic()
    reach("runs.plan.begin")
    assert time.monotonic() - begin_s >= 0.05


@pytest.mark.parametrize("seconds", ["0", "0.0", ".0", "0."])
def test_no_time_at_all_is_a_sleep_as_well(seconds: str, tmp_path: Path) -> None:
    arm(f"runs.plan.begin=sleep({seconds});uploads.write=sleep({seconds})")
    reach("runs.plan.begin")
    with (tmp_path / "file").open("wb") as file:
        reach_write("uploads.write", file.fileno(), b"12345678", 0)
    assert (tmp_path / "file").read_bytes() == b""


def test_an_error_at_a_write_leaves_half_of_the_bytes(tmp_path: Path) -> None:
    arm("uploads.write=error(ENOSPC)")
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="No space left"):
        reach_write("uploads.write", file.fileno(), b"12345678", 0)
    assert (tmp_path / "file").read_bytes() == b"1234"


def test_kill_ends_the_process_from_the_environment() -> None:
    done = in_a_process("reach('runs.plan.begin'); print('alive')", "runs.plan.begin=kill")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_torn_leaves_half_of_the_bytes_and_no_process(tmp_path: Path) -> None:
    path = tmp_path / "file"
    code = (
        f"f = open({str(path)!r}, 'wb'); reach_write('uploads.write', f.fileno(), b'12345678', 0)"
    )
    assert in_a_process(code, "uploads.write=torn").returncode == -signal.SIGKILL
    assert path.read_bytes() == b"1234"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("runs.plan.begun=kill", "there is no point 'runs.plan.begun'"),
        ("runs.plan.begin=explode", "is not"),
        ("runs.plan.begin=error(EPERM)", "an error is one of"),
        ("runs.plan.begin=torn", "no bytes are written there"),
        ("runs.plan.begin", "is not"),
        ("runs.plan.begin=sleep(1.2.3)", "is not"),
        ("runs.plan.begin=sleep(.)", "is not"),
        ("runs.plan.begin=sleep()", "is not"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(settings: str, said: str) -> None:
    arm("runs.plan.recorded=error(EIO)")
    with pytest.raises(ConfigError, match=said):
        arm(f"runs.commit.begin=kill;{settings}")
    reach("runs.commit.begin")
    with pytest.raises(OSError, match="failpoint"):
        reach("runs.plan.recorded")


def test_an_unknown_name_in_the_environment_is_an_error_at_the_start() -> None:
    done = in_a_process("print('started')", "no.such.point=kill")
    assert done.returncode != 0
    assert "there is no point 'no.such.point'" in done.stderr
    assert done.stdout == ""
