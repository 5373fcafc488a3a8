"""What a scrape tells of training is what the journal says."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.miner.serving.metrics.scraping import Scrape, scrape
from tests.trainer.fake_run import ALONE, FakeMiner, batch_of, config_of
from tests.trainer.feed.served_miner import free_port
from tests.trainer.journals import read_steps
from trainer.config import MetricsConfig
from trainer.errors import ConfigError
from trainer.journal import journal_path
from trainer.loop import train
from trainer.meters import TrainingMeters, open_meters

NUM_STEPS = 12
PREFIX = "coalface_trainer_"


def scraped_run(out: Path, at_step: int, miner: FakeMiner | None = None) -> Scrape:
    """A whole run, scraped while it waits for the batch of ``at_step``."""
    port, told = free_port(), []

    def before_step(step: int) -> None:
        if step == at_step:
            told.append(scrape(f"127.0.0.1:{port}"))

    miner = miner or FakeMiner()
    miner.before_step = before_step
    announce = {"every_steps": 2, "after_step": 2}
    config = config_of(out, metrics={"port": port}, announce=announce)
    train(config, miner, ALONE)
    return told[0]


def test_figures_of_steps_batches_and_rounds_are_those_of_the_journal(tmp_path: Path) -> None:
    told = scraped_run(tmp_path, at_step=11)
    steps = list(read_steps(journal_path(tmp_path, 0)).values())[:11]
    batches = [batch_of(step) for step in range(11)]

    def get(name: str, **labels: str) -> float | None:
        return told.get(name, PREFIX, **labels)

    assert get("steps_total") == 11
    assert get("next_step") == 11
    assert get("rows_total") == sum(event["rows"] for event in steps)
    assert get("triplets_total") == sum(batch.num_triplets for batch in batches)
    assert get("rounds_total") == 3
    assert get("round_id") == 3
    assert get("batches_over_stale_total") == 0
    assert get("batch_staleness_steps_sum") == sum(event["staleness_steps"] for event in steps)
    assert get("loss") == steps[-1]["loss"]
    assert get("gradient_norm") == steps[-1]["gradient_norm"]
    assert get("learning_rate") == steps[-1]["lr"]
    assert get("step_seconds_count") == 11
    step_s = sum(event["step_s"] for event in steps)
    assert get("step_seconds_sum") == pytest.approx(step_s, abs=1e-4)
    stalled_s = sum(event["stalled_s"] for event in steps)
    assert get("stalled_seconds_total") == pytest.approx(stalled_s, abs=1e-4)
    assert (get("reconnects_total"), get("buffered_batches")) == (2, 3)
    assert told.families["coalface_trainer_info"].samples[0].labels == {
        "run_id": "fake",
        "rank": "0",
    }
    for name, family in told.families.items():
        assert name.startswith("coalface_trainer")
        assert len(family.documentation) > 10, name


def outcomes(told: Scrape) -> dict[str, float]:
    return told.by("announcements_total", "outcome", PREFIX)


@pytest.mark.parametrize(("refuses", "outcome"), [("", "accepted"), ("collapsed", "refused")])
def test_announcements_are_told_by_their_outcome(
    tmp_path: Path, refuses: str, outcome: str
) -> None:
    told = outcomes(scraped_run(tmp_path, 11, FakeMiner(refuses=refuses)))
    assert told.keys() == {"accepted", "superseded", "refused", "failed", "replaced"}
    assert told[outcome] + told["replaced"] >= 3
    assert told["failed"] == 0
    assert told["refused" if outcome == "accepted" else "accepted"] == 0


def test_each_rank_has_a_port_and_a_registry_of_its_own() -> None:
    first = free_port()
    config = MetricsConfig(port=first)
    with open_meters(config, "r", 0) as meters, open_meters(config, "r", 1):
        meters.step(batch_of(3), _Result(), 0.5, 0.25)
        told = [scrape(f"127.0.0.1:{first + rank}") for rank in (0, 1)]
    assert [one.get("steps_total", PREFIX) for one in told] == [1, 0]
    assert [one.families["coalface_trainer_info"].samples[0].labels["rank"] for one in told] == [
        "0",
        "1",
    ]


def test_an_address_with_colons_is_told_in_brackets(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), open_meters(MetricsConfig(host="::1", port=0), "r", 0):
        assert re.search(r"http://\[::1\]:\d+/metrics", caplog.text)


class _Result:
    loss, gradient_norm, lr = 1.0, 2.0, 3.0


def test_a_taken_port_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    port = free_port()
    told = rf"rank 0 .*port {port} .*choose another port"
    taken = open_meters(MetricsConfig(port=port), "other", 0)
    with taken, pytest.raises(ConfigError, match=told):
        train(config_of(tmp_path, metrics={"port": port}), FakeMiner(), ALONE)
    assert read_steps(journal_path(tmp_path, 0)) == {}
    train(config_of(tmp_path, metrics={"port": port}), FakeMiner(), ALONE)


@pytest.mark.parametrize("statement", ["import trainer.loop", "import trainer.feed"])
def test_without_a_port_the_library_is_not_even_loaded(statement: str) -> None:
    code = f"import sys; {statement}; sys.exit('prometheus_client' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_figures_that_are_followed_are_read_at_each_scrape() -> None:
    meters = TrainingMeters("r", 0)
    counts = {"accepted": 1}
    reads: list[Callable[[], dict[str, int]]] = [lambda: counts]
    meters.follow_announcements(reads[0])

    def accepted() -> float | None:
        return meters.registry.get_sample_value(
            "coalface_trainer_announcements_total", {"outcome": "accepted"}
        )

    assert accepted() == 1
    counts["accepted"] = 5
    assert accepted() == 5
