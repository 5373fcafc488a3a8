"""Starts the demo's processes and stops everything they started, whatever happens."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from miner.errors import CoalfaceError

__all__ = ["ProcessFailedError", "running", "service", "wait_for"]

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
TAIL_LINES = 15


class ProcessFailedError(CoalfaceError):
    """A process of the demo ended badly; the text holds the end of its log."""


@contextmanager
def running(
    arguments: Sequence[str], log: Path, num_threads: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``python arguments...`` in a session of its own; on leaving, end the whole session."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def wait_for(
    process: subprocess.Popen[bytes], log: Path, on_poll: Callable[[], None] = lambda: None
) -> None:
    """Wait until ``process`` has ended well, calling ``on_poll`` several times a second.

    Raises:
        ProcessFailedError: It ended with another code than 0.
    """
    while process.poll() is None:
        on_poll()
        time.sleep(0.2)
    on_poll()
    _check(process, log)


@contextmanager
def service(config: Path, state_dir: Path, log: Path) -> Iterator[str]:
    """Run ``coalface-miner serve``; yields its address once it can be reached.

    Raises:
        ProcessFailedError: It ended, or did not come up in time.
    """
    endpoint = state_dir / "endpoint.json"
    endpoint.unlink(missing_ok=True)
    with running(["-m", "miner", "serve", "--config", str(config)], log) as process:
        give_up_s = time.monotonic() + START_TIMEOUT_S
        while not endpoint.exists():
            _check(process, log)
            if time.monotonic() > give_up_s:
                raise ProcessFailedError(f"no service after {START_TIMEOUT_S:g} s:\n{_tail(log)}")
            time.sleep(0.1)
        yield json.loads(endpoint.read_text("utf-8"))["address"]


def _check(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll():
        raise ProcessFailedError(
            f"{' '.join(map(str, process.args))} ended with code {process.returncode}; "  # type: ignore[arg-type]
            f"the end of {log}:\n{_tail(log)}"
        )


def _tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-TAIL_LINES:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the process, then SIGKILL to whatever its session still holds."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.warning("process %d did not stop within %g s", process.pid, STOP_TIMEOUT_S)
    for pid in _session_members(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def _session_members(session_id: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session_id:
                members.append(int(entry.name))
        except ProcessLookupError:
            continue
    return members
