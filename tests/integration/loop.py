"""A miner and its trainers as real processes in a folder, talking over a real socket."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from miner.app.demo.processes import ProcessTree, running, running_service

__all__ = ["Loop", "is_gone", "wait_until"]


@dataclass
class Loop:
    """One miner and its trainers in a folder."""

    folder: Path
    dataset: Path
    port: int = 0
    selection: dict[str, Any] = field(default_factory=dict)
    chunk_rows: int = 64
    archive_uri: str | None = None
    _miner: ProcessTree | None = field(default=None, init=False)

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def out(self) -> Path:
        return self.folder / "training"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def journal(self, rank: int) -> list[dict[str, Any]]:
        """The steps that a rank has trained, in the order in which it did."""
        return [event for event in self._events(rank) if event["event"] == "step"]

    def _events(self, rank: int) -> list[dict[str, Any]]:
        path = self.out / f"journal-{rank}.jsonl"
        if not path.exists():
            return []
        lines = path.read_text("utf-8").splitlines()
        events = []
        for line in lines:
            try:
                events.append(json.loads(line))
            except ValueError:  # cut off by a kill
                continue
        return events

    @contextmanager
    def miner(self, name: str = "miner") -> Iterator[str]:
        config = self.folder / "miner.yaml"
        config.write_text(yaml.safe_dump(self.miner_config()))
        with running_service(config, self.state_dir, self.log_of(name)) as (self._miner, address):
            yield address

    @contextmanager
    def torchrun(self, name: str, ranks: int = 2) -> Iterator[ProcessTree]:
        config = self.folder / "trainer.yaml"
        config.write_text(yaml.safe_dump(self.trainer_config()))
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        train = ["-m", "trainer", "train", "--config", str(config)]
        with running([*command, *train], self.log_of(name)) as process:
            yield process

    def rank_pids(self) -> set[int]:
        """The processes that have trained so far."""
        starts = (event for rank in (0, 1) for event in self._events(rank))
        return {event["pid"] for event in starts if event["event"] == "start"}

    def kill_miner(self) -> set[int]:
        """SIGKILL to the driver and to everything that Ray started for it; returns their pids."""
        assert self._miner is not None, "no miner was started"
        members = self._miner.members()
        self._miner.kill_all()
        return members

    def stop_miner(self) -> None:
        """SIGTERM to the driver; returns when it has ended."""
        pid = self._miner_pid()
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: is_gone(pid), "end of the miner")

    def kill_serving_actor(self) -> None:
        """SIGKILL to the process that holds the gRPC server; Ray starts another."""
        find = ["pgrep", "-s", str(self._miner_pid()), "-f", "ray::MiningServiceActor"]
        pids = subprocess.run(find, capture_output=True, text=True, check=True).stdout.split()
        assert len(pids) == 1, f"one serving actor expected, found {pids}"
        subprocess.run(["kill", "-KILL", pids[0]], check=True)

    def _miner_pid(self) -> int:
        endpoint = json.loads((self.state_dir / "endpoint.json").read_text("utf-8"))
        return int(endpoint["pid"])

    def log_of(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def miner_config(self) -> dict[str, Any]:
        return {
            "state_dir": str(self.state_dir),
            "ray_address": "local",
            "dataset": {"uri": str(self.dataset), "filter": 'split == "train"'},
            "encoder": {
                "weights_prefixes": [str(self.out)],
                "encoder_args": {"width": 8},
                "max_canary_similarity": 0.9999,  # ten steps do not spread the space much
            },
            "selection": {"groups_per_round": 48, "num_candidates": 64, "window_stop": 8}
            | self.selection,
            "rounds": {"archive_uri": self.archive_uri},
            "workers": {"chunk_rows": self.chunk_rows},
            "refresh": {"warmup_steps": 6},
            "serving": {"stride_steps": 4, "port": self.port},
        }

    def trainer_config(self) -> dict[str, Any]:
        return {
            "run_id": "run",
            "out": str(self.out),
            "steps": 60,
            "batch_rows": 64,
            # 48 groups are 12 steps: whoever waits for the next round sees mined ones from then on.
            "miner": {"address": self.address, "patience_s": 60, "exhausted": "wait"},
            "encoder": {"args": {"width": 8}},
            "checkpoint": {"every_steps": 10},
            "announce": {"every_steps": 6, "after_step": 6},
        }


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 90.0) -> None:
    """Return once ``condition`` holds; fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s"
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts as ended."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return True
