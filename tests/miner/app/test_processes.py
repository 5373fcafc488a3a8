"""Whatever the demo starts is gone when it leaves, wherever it hides."""

import time
from pathlib import Path

import pytest

from miner.app.demo import processes
from miner.app.demo.processes import ProcessFailedError, ProcessTree, running, wait_for

GRANDCHILD = (
    "import subprocess, sys, time; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
    "start_new_session=True); print('up', flush=True); time.sleep(60)"
)
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


def wait_for_text(log: Path, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("prelude", ["", DEAF], ids=["ends on SIGTERM", "ignores SIGTERM"])
def test_a_grandchild_in_a_session_of_its_own_is_ended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prelude: str
) -> None:
    monkeypatch.setattr(processes, "STOP_TIMEOUT_S", 0.5)
    log = tmp_path / "log"
    with running(["-c", prelude + GRANDCHILD], log) as tree:
        wait_for_text(log, "up")
        assert len(tree.members()) == 2
    assert tree.members() == set()


def test_a_process_that_fails_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        pytest.raises(ProcessFailedError, match=r"ended with code 3(.|\n)*the reason"),
        running(["-c", "print('the reason'); raise SystemExit(3)"], log) as tree,
    ):
        wait_for(tree, log)


def test_strangers_are_no_members(tmp_path: Path) -> None:
    tree = ProcessTree(["-c", "import time; time.sleep(60)"], tmp_path / "log")
    other = ProcessTree(["-c", "import time; time.sleep(60)"], tmp_path / "other")
    try:
        assert tree.members() == {tree.pid}
    finally:
        tree.kill_all()
        assert other.members() == {other.pid}
        other.kill_all()
