"""What an operator sees of a real service on Ray: metrics, JSON logs, status, verify, drain."""

import hashlib
import json
import socket
import subprocess
import sys
from typing import Any

import pytest

from miner.embedding.config import EncoderConfig
from miner.embedding.weights import initial_weights
from tests.integration.loop import Loop, is_gone, wait_until
from tests.miner.serving.metrics.scraping import Scrape, scrape
from tests.trainer.feed.served_miner import free_port
from trainer.errors import WeightsRefusedError
from trainer.feed import MinerClient, TripletFeed

pytestmark = pytest.mark.timeout(240)


class ObservedLoop(Loop):
    metrics_port: int

    def miner_config(self) -> dict[str, Any]:
        return super().miner_config() | {"metrics": {"port": self.metrics_port}}


def miner(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "miner", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def observed(loop: Loop) -> ObservedLoop:
    found = ObservedLoop(loop.folder, loop.dataset, loop.port)
    found.metrics_port = free_port()
    return found


@pytest.mark.long
def test_a_service_is_seen_from_outside_from_its_start_to_its_drain(
    observed: ObservedLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COALFACE_LOG_FORMAT", "json")
    observed.out.mkdir()
    good, bad = observed.out / "good.safetensors", observed.out / "bad.safetensors"
    good_sha256 = initial_weights(EncoderConfig(encoder_args={"width": 8}), good, seed=3)
    bad.write_bytes(b"these are no weights")
    bad_sha256 = hashlib.sha256(bad.read_bytes()).hexdigest()
    metrics = f"127.0.0.1:{observed.metrics_port}"

    with observed.miner(), MinerClient(observed.address, patience_s=30) as client:
        endpoint = json.loads((observed.state_dir / "endpoint.json").read_text())
        assert endpoint["metrics"] == metrics
        with pytest.raises(WeightsRefusedError):
            client.announce(step=50, uri=str(bad), sha256=bad_sha256)
        with pytest.raises(WeightsRefusedError):
            client.announce(step=50, uri=str(good), sha256=bad_sha256)
        client.announce(step=50, uri=str(good), sha256=good_sha256)
        wait_until(lambda: len(client.status().rounds) == 2, "mined round")
        with TripletFeed(observed.address, run_id="run", batch_rows=64, num_steps=6) as feed:
            assert len(list(feed)) == 6
        wait_until(lambda: refreshes(scrape(metrics)) == {"sealed": 2, "failed": 0}, "its end")
        told = scrape(metrics)
        refused = told.by("weights_refused_total", "kind")
        assert {kind: n for kind, n in refused.items() if n} == {"format": 1, "digest": 1}
        assert told.get("stream_steps_total") == 6
        check_round(told)

        observed.kill_serving_actor()
        client.status()  # waits for its successor
        after = scrape(metrics)
        check_round(after)
        assert after.get("stream_steps_total") == 0, "counted by the process that serves"

        shown = miner("status", "--state-dir", str(observed.state_dir))
        assert shown.returncode == 0, shown.stderr
        assert "rank_window" in shown.stdout
        sound = miner("verify", str(observed.state_dir))
        assert (sound.returncode, sound.stderr) == (0, ""), sound.stdout
        drained = miner("drain", "--state-dir", str(observed.state_dir))
        assert drained.returncode == 0, drained.stderr
        wait_until(lambda: is_gone(endpoint["pid"]), "end of the service")

    lines = observed.log_of("miner").read_text().splitlines()
    by_ray = [line for line in lines if line.startswith("Token auth") or "(raylet)" in line]
    events = [json.loads(line) for line in lines if line not in by_ray]
    assert all({"time", "level", "logger", "message"} <= event.keys() for event in events)
    refusals = [event for event in events if event.get("kind")]
    assert [(e["kind"], e["model_step"], e["worker"]) for e in refusals] == [
        ("format", 50, "serving"),
        ("digest", 50, "serving"),
    ]
    sealed = [e for e in events if e["logger"] == "miner.app.refresher" and "round" in e]
    assert [(e["round"], e["strategy"]) for e in sealed] == [(1, "random"), (2, "rank_window")]
    assert {"embed", "serving"} <= {event.get("worker") for event in events}


def refreshes(told: Scrape) -> dict[str, float]:
    return told.by("refreshes_total", "outcome")


def check_round(told: Scrape) -> None:
    assert told.get("rounds_sealed_total") == told.get("round_id") == 2
    assert told.get("round_model_step") == 50
    assert told.get("round_info", strategy="rank_window") == 1
    assert {"embedding", "searching", "selecting"} <= told.by("round_phase_seconds", "phase").keys()
    assert (told.get("round_embedded_rows_per_second") or 0) > 0
    assert (told.get("round_searched_anchors_per_second") or 0) > 0
    assert len(told.by("round_hardness", "quantile")) == 3
    assert set(told.by("scrape_failed", "part").values()) == {0}


def test_a_taken_metrics_port_ends_serve_before_anything_is_started(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = miner(
            "serve",
            *("--set", f"state_dir={loop.state_dir}", "--set", f"dataset.uri={loop.dataset}"),
            *("--set", f"metrics.port={port}"),
        )
    assert done.returncode == 2
    assert f"metrics.port={port}" in done.stderr
    assert "Traceback" not in done.stderr
