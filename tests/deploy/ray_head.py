"""A Ray head of one's own, with the dashboard that takes jobs; it ends with all that it started."""

import os
import secrets
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from miner.app.demo.processes import running
from tests.integration.loop import wait_until
from tests.trainer.feed.served_miner import REPOSITORY, free_port

__all__ = ["RayHead", "ray_head"]

BIN = str(Path(sys.executable).parent)


@dataclass(frozen=True)
class RayHead:
    """A running head."""

    dashboard: str
    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command as somebody outside the cluster gives it; it must succeed."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def job(self, verb: str, *arguments: str) -> str:
        """``ray job VERB``; returns what it printed."""
        return self.run("ray", "job", verb, "--address", self.dashboard, *arguments).stdout


def _environment(folder: Path) -> dict[str, str]:
    """This environment's `python` and `ray` come first, as in the image; one cluster's token."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    known = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    path = os.pathsep.join([BIN, known["PATH"]])
    code = os.pathsep.join([str(REPOSITORY), known.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    told = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    return known | {"PATH": path, "PYTHONPATH": code} | auth | told


@contextmanager
def ray_head(log: Path) -> Iterator[RayHead]:
    """``ray start --head`` on free ports and in a folder of its own, until the block ends.

    The folder's path is short, for sockets lie in it, and other Rays of the machine look elsewhere.
    """
    dashboard_port = free_port()
    with tempfile.TemporaryDirectory(prefix="cf-", ignore_cleanup_errors=True) as name:
        start = ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=4"]
        ports = [f"--port={free_port()}", f"--dashboard-port={dashboard_port}"]
        ports += ["--dashboard-agent-listen-port=0", f"--ray-client-server-port={free_port()}"]
        memory = [f"--object-store-memory={80 * 2**20}", f"--temp-dir={name}"]
        head = RayHead(f"http://127.0.0.1:{dashboard_port}", _environment(Path(name)))
        with (
            mock.patch.dict(os.environ, head.environment, clear=True),
            running([*start, *ports, *memory], log) as process,
        ):
            wait_until(lambda: process.poll() is not None or _is_healthy(head), "dashboard")
            assert process.poll() is None, log.read_text()
            yield head


def _is_healthy(head: RayHead) -> bool:
    """As the head's readiness probe asks, without a token."""
    try:
        with urllib.request.urlopen(f"{head.dashboard}/api/gcs_healthz", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
