"""A Ray cluster of several nodes on this machine: real ``ray start`` processes, to be killed.

Every node is a process tree of its own, with its workers, so that one can be lost and others stay.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from miner.app.demo.processes import ProcessTree, running
from tests.integration.loop import wait_until
from tests.trainer.feed.served_miner import REPOSITORY, free_port

__all__ = ["Autoscaling", "RayNodes", "ray_nodes"]

Autoscaling = Callable[[str], dict[str, Any]]

QUICK_HEALTH_CHECKS = {
    # A lost node is seen as lost within seconds, rather than a quarter of a minute.
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
}
START = ["-m", "ray.scripts.scripts", "start", "--block", f"--object-store-memory={80 * 2**20}"]


@dataclass
class RayNodes:
    """A head without CPUs, where the driver lives, and nodes that do the work."""

    address: str
    environment: dict[str, str]
    logs: Path
    temp: str
    stack: ExitStack
    head: ProcessTree = field(init=False)
    nodes: list[ProcessTree] = field(default_factory=list)

    def start_head(self, *more: str) -> None:
        port = self.address.rpartition(":")[2]
        options = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
        options += [f"--temp-dir={self.temp}", f"--ray-client-server-port={free_port()}"]
        self.head = self._start("head", *options, *more)

    def add(self, num_cpus: int) -> ProcessTree:
        """One more node; returns once the cluster has it."""
        name = f"node-{len(self.nodes)}"
        node = self._start(name, f"--address={self.address}", f"--num-cpus={num_cpus}")
        self.nodes.append(node)
        return node

    def node_of(self, pid: int) -> ProcessTree:
        """The node that a process belongs to."""
        return next(node for node in self.nodes if pid in node.members())

    def kill(self, node: ProcessTree) -> None:
        """SIGKILL to its raylet and all its workers at once."""
        node.kill_all()
        self.nodes.remove(node)

    def freeze(self, node: ProcessTree) -> None:
        """Stop all of it, as a machine stands still that is gone from the network."""
        for pid in node.members():
            os.kill(pid, signal.SIGSTOP)
        self.nodes.remove(node)
        self.stack.callback(node.kill_all)  # it would not hear SIGTERM

    def workers(self, name: str) -> list[psutil.Process]:
        """Processes of an actor class, on all nodes."""
        pids = [pid for node in self.nodes for pid in node.members()]
        found = []
        for pid in pids:
            try:
                process = psutil.Process(pid)
                if name in process.name() or name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def _start(self, name: str, *options: str) -> ProcessTree:
        ports = ["--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"]
        log = self.logs / f"{name}-{free_port()}.log"
        with mock.patch.dict(os.environ, self.environment, clear=True):
            node = self.stack.enter_context(running([*START, *options, *ports], log))
        wait_until(lambda: node.poll() is not None or "runtime started" in log.read_text(), name)
        assert node.poll() is None, log.read_text()
        return node


@contextmanager
def ray_nodes(
    logs: Path, *num_cpus: int, autoscaling: Autoscaling | None = None, **variables: str
) -> Iterator[RayNodes]:
    """A head, and a node for each of ``num_cpus``; all end with the block.

    Args:
        logs: Folder of what they print.
        num_cpus: Of each node.
        autoscaling: Makes the configuration of an autoscaler of the cluster's address.
        variables: Of the environment of all processes.
    """
    known = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    told = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_AUTH_MODE": "disabled",  # as for drivers by default; a head alone asks for a token
    }
    code = os.pathsep.join([str(REPOSITORY), variables.pop("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = known | told | QUICK_HEALTH_CHECKS | variables | {"PYTHONPATH": code}
    with (
        tempfile.TemporaryDirectory(prefix="cf-", ignore_cleanup_errors=True) as temp,
        ExitStack() as stack,
    ):
        address = f"127.0.0.1:{free_port()}"
        cluster = RayNodes(address, environment, logs, temp, stack)
        if autoscaling is None:
            cluster.start_head()
        else:
            path = Path(temp) / "autoscaling.json"
            path.write_text(json.dumps(autoscaling(address)))
            cluster.start_head(f"--autoscaling-config={path}")
        for number in num_cpus:
            cluster.add(number)
        yield cluster
