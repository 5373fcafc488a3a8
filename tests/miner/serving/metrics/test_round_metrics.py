"""What a scrape tells of rounds is what their manifests say, before and after a restart."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miner.core import SelectionConfig, random_groups
from miner.data import RowStore
from miner.rounds import RoundLog, RoundWriter
from miner.rounds.log import MANIFEST_FILE
from miner.serving.metrics.rounds import histogram_quantile
from tests.miner.rounds.round_samples import make_draft
from tests.miner.serving.metrics.scraping import endpoint_of, scrape
from tests.trainer.feed.served_miner import NUM_ROWS, ServerThread, make_folder
from trainer.feed import MinerClient, RunParameters


def mined_folder(root: Path, **selection: Any) -> Path:
    """A log whose one round has the report of a real selection, with hardness filled in."""
    make_folder(root, num_rounds=0)
    store = RowStore.open(root / "store")
    config = SelectionConfig(groups_per_round=20, identities_per_group=3, samples_per_identity=2)
    made = random_groups(store.catalog.identities, config, seed=1, round_id=1)
    report = asdict(made.report) | {
        "hardness_counts": [0] * 10 + [10] * 10 + [0] * 20,
        "violating_fraction": 0.625,
        "shortfalls": {"guards": 3, "caps": 1},
        **selection,
    }
    draft = make_draft(
        model_step=250,
        weights_sha256="ab" * 32,
        dataset_fingerprint=store.fingerprint,
        strategy="rank_window",
        recall=0.97,
        selection=report,
        phases_s={"embedding": 4.0, "searching": 0.5, "selecting": 0.25},
        created_unix_s=time.time() - 90.0,
    )
    RoundWriter.open(RoundLog(root / "log")).seal(made.groups, draft)
    return root


def test_every_figure_of_the_newest_manifest_is_told_and_outlives_a_restart(tmp_path: Path) -> None:
    folder = mined_folder(tmp_path)
    report: Any = RoundLog(folder / "log").manifest(1).selection
    for _ in ("first start", "restart"):
        miner = ServerThread(folder)
        with endpoint_of(miner) as address:
            told = scrape(address)
        miner.stop()
        assert told.get("rounds_sealed_total") == told.get("rounds_kept") == 1
        assert told.get("round_id") == 1
        assert 90 <= (told.get("round_age_seconds") or 0) < 150
        assert told.get("round_model_step") == 250
        assert told.get("round_info", strategy="rank_window") == 1
        assert told.get("round_recall") == 0.97
        assert told.by("round_phase_seconds", "phase") == {
            "embedding": 4.0,
            "searching": 0.5,
            "selecting": 0.25,
        }
        assert told.get("round_embedded_rows_per_second") == NUM_ROWS / 4
        assert told.get("round_searched_anchors_per_second") == 20 / 0.5
        assert told.get("round_violating_ratio") == 0.625
        hardness = told.by("round_hardness", "quantile")
        assert hardness == pytest.approx({"0.1": -0.45, "0.5": -0.25, "0.9": -0.05})
        assert told.by("round_exposure_gini", "of") == {
            kind: report[f"{kind}_exposure"]["gini"] for kind in ("anchor", "identity", "sample")
        }
        triplets = told.by("round_triplets", "tier")
        assert list(triplets.values()) == report["tiers"]
        assert list(triplets) == ["strategy", "relaxed", "random"]
        assert told.by("round_short_anchors", "reason") == {"guards": 3, "caps": 1}
        assert set(told.by("scrape_failed", "part").values()) == {0}


def test_a_random_round_and_an_older_manifest_leave_out_what_they_do_not_know(
    tmp_path: Path,
) -> None:
    miner = ServerThread(make_folder(tmp_path))  # its manifests have an empty report
    with endpoint_of(miner) as address:
        told = scrape(address)
    miner.stop()
    assert told.get("round_id") == 2
    assert told.get("round_recall") is None
    assert told.by("round_hardness", "quantile") == {}
    assert set(told.by("scrape_failed", "part").values()) == {0}


def test_an_empty_log_is_told_as_such(tmp_path: Path) -> None:
    miner = ServerThread(make_folder(tmp_path, num_rounds=0))
    with endpoint_of(miner) as address:
        told = scrape(address)
    miner.stop()
    assert told.get("rounds_sealed_total") == 0
    assert told.get("round_id") is None


def test_a_damaged_manifest_costs_its_own_figures_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = mined_folder(tmp_path)
    path = RoundLog(folder / "log").folder(1) / MANIFEST_FILE
    path.write_bytes(path.read_bytes().replace(b"rank_window", b"rank_widnow"))
    miner = ServerThread(folder)
    with endpoint_of(miner) as address:
        told = [scrape(address) for _ in range(3)][-1]
        assert told.get("scrape_failed", part="rounds") == 1
        assert told.get("scrape_failed", part="runs") == 0
        assert told.get("runs_live") == 0
    with MinerClient(miner.address, patience_s=5) as client:
        parameters = RunParameters(run_id="r", batch_rows=24)
        assert client.open_run(parameters).created, "serving goes on"
    miner.stop()
    assert sum("the figures of rounds" in r.message for r in caplog.records) == 1, "told once"


def test_quantiles_of_a_histogram_are_those_of_its_values_up_to_a_bin() -> None:
    rng = np.random.default_rng(0)
    values, edges = np.sort(rng.normal(-0.2, 0.2, 4000)), np.linspace(-1, 1, 41)
    counts = np.histogram(values, edges)[0]
    for quantile in (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0):
        found = histogram_quantile(edges.tolist(), counts.tolist(), quantile)
        assert found == pytest.approx(float(np.quantile(values, quantile)), abs=0.05)
    assert histogram_quantile([0.0, 1.0], [0], 0.5) is None
