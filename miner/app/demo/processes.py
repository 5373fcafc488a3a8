"""Starts the demo's processes and stops everything they started, whatever happens."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from miner.errors import CoalfaceError

__all__ = [
    "ProcessFailedError",
    "ProcessTree",
    "running",
    "running_service",
    "service",
    "wait_for",
]

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0  # torchrun gives its ranks 30
MARK = "COALFACE_PROCESS_TREE"
TAIL_LINES = 15


class ProcessFailedError(CoalfaceError):
    """A process of the demo ended badly; the text holds the end of its log."""


class ProcessTree(subprocess.Popen[bytes]):
    """``python arguments...`` with everything that it starts, wherever that hides.

    Descendants are known by a mark in the environment that they inherit, and by their sessions:
    torchrun gives each rank a session of its own, Ray's workers may overwrite their environment.
    """

    def __init__(self, arguments: Sequence[str], log: Path, num_threads: int = 1) -> None:
        """Start it, in a session of its own, with its output in ``log``."""
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", name: value}
        environment["OMP_NUM_THREADS"] = str(num_threads)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            super().__init__(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def members(self) -> set[int]:
        """The pids of all that are alive, this process included."""
        alive = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        marked = {pid for pid in alive if self._mark.encode() in _environment(pid)}
        sessions = {_session(pid) for pid in marked} | {self.pid}
        found = marked | {pid for pid in alive if _session(pid) in sessions}
        return {pid for pid in found if not _is_zombie(pid)}

    def kill_all(self) -> None:
        """SIGKILL to every member, until none is left; returns when all of them have ended."""
        killed: set[int] = set()
        # Who is on the way out has no environment any more, but may still hold files and ports.
        while (members := self.members()) or not all(map(_is_zombie, killed)):
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= members
            time.sleep(0.02)
        self.wait()


@contextmanager
def running(arguments: Sequence[str], log: Path, num_threads: int = 1) -> Iterator[ProcessTree]:
    """Run ``python arguments...``; on leaving, whatever it started is ended too."""
    tree = ProcessTree(arguments, log, num_threads)
    try:
        yield tree
    finally:
        _stop(tree)


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
    with running_service(config, state_dir, log) as (_, address):
        yield address


@contextmanager
def running_service(config: Path, state_dir: Path, log: Path) -> Iterator[tuple[ProcessTree, str]]:
    """As :func:`service`, for callers that need its processes too."""
    endpoint = state_dir / "endpoint.json"
    endpoint.unlink(missing_ok=True)
    with running(["-m", "miner", "serve", "--config", str(config)], log) as process:
        give_up_s = time.monotonic() + START_TIMEOUT_S
        while not endpoint.exists():
            _check(process, log)
            if time.monotonic() > give_up_s:
                raise ProcessFailedError(f"no service after {START_TIMEOUT_S:g} s:\n{_tail(log)}")
            time.sleep(0.1)
        yield process, json.loads(endpoint.read_text("utf-8"))["address"]


def _check(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll():
        raise ProcessFailedError(
            f"{' '.join(map(str, process.args))} ended with code {process.returncode}; "  # type: ignore[arg-type]
            f"the end of {log}:\n{_tail(log)}"
        )


def _tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-TAIL_LINES:])


def _stop(tree: ProcessTree) -> None:
    """SIGTERM to the process; SIGKILL to whatever is left of its tree then."""
    if tree.poll() is None:
        tree.send_signal(signal.SIGTERM)
        try:
            tree.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.warning("process %d did not stop within %g s", tree.pid, STOP_TIMEOUT_S)
    tree.kill_all()


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # gone, or another user's
        return b""


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
