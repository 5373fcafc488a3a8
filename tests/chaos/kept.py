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
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miner.failpoints import ENVIRONMENT
from tests.chaos.process_hooks import CLOCK, FIRED
from tests.trainer.feed.served_miner import REPOSITORY

__all__ = ["Kept"]

POLL_S = 0.02


class Kept:
    """One program under watch. Its methods are for one thread.

    Args:
        module: What ``python -m`` starts, with its arguments.
        folder: Where its clock and its notes lie.
        fine: Exit codes with which it may end by itself, beside SIGKILL.

    Attributes:
        fired: "failpoint <name>: <action>" -> how often one that was to act once did.
        lives: How many there were.
        crashes: Exit codes of lives that ended in another way.
    """

    def __init__(self, module: list[str], folder: Path, fine: tuple[int, ...] = ()) -> None:
        self._command = [sys.executable, "-m", *module]
        self._folder = folder
        self._name = module[0].rpartition(".")[2]
        self._fine = {-signal.SIGKILL, *fine}
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = ""
        self._lock = threading.RLock()
        self._wanted = False
        self.fired: Counter[str] = Counter()
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

    def kill(self, failpoints: str = "") -> None:
        """SIGKILL, and up again."""
        with self._lock:
            self.halt()
            self.start(failpoints)

    def halt(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it by a signal and keep it down."""
        with self._lock:
            self._wanted = False
            if self._process is not None:
                self._process.send_signal(signal.SIGCONT)
                self._process.send_signal(number)
                self._process.wait(timeout=30)
                self._bury()

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            process.send_signal(signal.SIGCONT)

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
        self._settings = failpoints
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            ENVIRONMENT: failpoints,
            CLOCK: str(self._folder / "clock"),
            FIRED: str(self._fired_file),
        }
        log = self._folder / f"{self._name}.log"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                self._command, cwd=REPOSITORY, env=environment, stdout=file, stderr=file
            )

    @property
    def _fired_file(self) -> Path:
        return self._folder / f"{self._name}-{self.lives}.fired"

    def _bury(self) -> None:
        assert self._process is not None
        code = self._process.returncode
        if code not in self._fine:
            self.crashes.append(code)
        if self._fired_file.exists():
            if "*" in self._settings:  # a disk that is full for long is counted where it is filled
                self.fired.update(self._fired_file.read_text().splitlines())
            self._fired_file.unlink()
        self._process = None

    def _watch(self) -> None:
        while True:
            time.sleep(POLL_S)
            with self._lock:
                if self._wanted and self._process and self._process.poll() is not None:
                    self._bury()
                    self._begin("")
