r"""A program that is started again whenever it dies, as a cluster would do; killed by the storm.

down --start()--> up --(dies by itself, or by kill())--> up again at once
                   \--halt()--> down
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from miner.failpoints import ENVIRONMENT
from tests.chaos.process_hooks import CLOCK, FIRED
from tests.trainer.feed.served_miner import REPOSITORY

__all__ = ["Kept", "stand_still"]

POLL_S = 0.02


def stand_still(process: subprocess.Popen[bytes]) -> bool:
    """SIGSTOP; whether the process was alive and does stand still now."""
    process.send_signal(signal.SIGSTOP)
    try:
        watched = psutil.Process(process.pid)
        while (status := watched.status()) not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0.001)
    except psutil.NoSuchProcess:
        return False
    return bool(status == psutil.STATUS_STOPPED)


class Kept:
    """One program under watch. Its methods are for one thread.

    Args:
        module: What ``python -m`` starts, with its arguments.
        folder: Where its clock and its notes lie.
        fine: Exit codes with which it may end by itself, beside SIGKILL.

    Attributes:
        lives: How many there were.
        crashes: Exit codes of lives that ended in another way.
    """

    def __init__(self, module: list[str], folder: Path, fine: tuple[int, ...] = ()) -> None:
        self._command = [sys.executable, "-m", *module]
        self._folder = folder
        self._name = module[0].rpartition(".")[2]
        self._fine = {-signal.SIGKILL, *fine}
        self._process: subprocess.Popen[bytes] | None = None
        self._armed: dict[int, str] = {}  # life -> its failpoints, if it had any
        self._lock = threading.RLock()
        self._wanted = False
        self.crashes: list[int] = []
        self.lives = 0
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the life it lives now."""
        with self._lock:
            return self._process.pid if self._process else 0

    def start(self, failpoints: str = "") -> None:
        """Bring it up; these failpoints are armed in this life only."""
        with self._lock:
            self._wanted = True
            self._begin(failpoints)

    def kill(self, failpoints: str = "") -> bool:
        """SIGKILL, and up again; whether it was alive."""
        with self._lock:
            code = self.halt()
            self.start(failpoints)
        return code is not None

    def halt(self, number: signal.Signals = signal.SIGKILL) -> int | None:
        """End it by a signal and keep it down; its exit code, None if it was not alive."""
        with self._lock:
            self._wanted = False
            process = self._process
            if process is None:
                return None
            was_alive = process.poll() is None
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            code = process.wait(timeout=30)
            self._bury()
            return code if was_alive else None

    def pause(self, seconds: float) -> bool:
        """SIGSTOP, and SIGCONT after a while; whether it was alive."""
        process = self._process
        if process is None or not stand_still(process):
            return False
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)
        return True

    def has_fired(self) -> bool:
        """Whether a failpoint of the last life that had any has acted."""
        return bool(self._armed) and bool(self._acted(max(self._armed)))

    def failpoints(self) -> list[tuple[str, bool]]:
        """Each setting that a life was armed with, and whether it acted there."""
        return [
            (setting, "failpoint {}: {}".format(*setting.rpartition("*")[2].split("=")) in acted)
            for life, settings in self._armed.items()
            for acted in (self._acted(life),)
            for setting in settings.split(";")
        ]

    @contextmanager
    def replaced(self) -> Iterator[subprocess.Popen[bytes]]:
        """Have a second one started beside it; gives the first, which is watched no more."""
        with self._lock:
            first, self._process = self._process, None
            self._begin("")
        assert first is not None
        try:
            yield first
        finally:
            if first.poll() is None:
                first.kill()
            first.wait()

    def _begin(self, failpoints: str) -> None:
        self.lives += 1
        if failpoints:
            self._armed[self.lives] = failpoints
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            ENVIRONMENT: failpoints,
            CLOCK: str(self._folder / "clock"),
            FIRED: str(self._fired_file(self.lives)),
        }
        log = self._folder / f"{self._name}.log"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                self._command, cwd=REPOSITORY, env=environment, stdout=file, stderr=file
            )

    def _fired_file(self, life: int) -> Path:
        return self._folder / f"{self._name}-{life}.fired"

    def _acted(self, life: int) -> list[str]:
        path = self._fired_file(life)
        return path.read_text().splitlines() if path.exists() else []

    def _bury(self) -> None:
        assert self._process is not None
        code = self._process.returncode
        if code not in self._fine:
            self.crashes.append(code)
        self._process = None

    def _watch(self) -> None:
        while True:
            time.sleep(POLL_S)
            with self._lock:
                if self._wanted and self._process and self._process.poll() is not None:
                    self._bury()
                    self._begin("")
