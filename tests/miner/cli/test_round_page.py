"""The page of a round shows the figures there are, and does without those there are not."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from miner.app.offline import RowNames, mine
from miner.cli.round_page import print_round
from miner.rounds import RoundLog, RoundManifest, RoundWriter
from tests.miner.app.offline.offline_samples import make_world, selection
from tests.miner.rounds.round_samples import make_draft, make_groups


def page(manifest: RoundManifest, names: RowNames | None = None, width: int = 80) -> str:
    text = io.StringIO()
    print_round(Console(file=text, width=width), manifest, names)
    assert max(map(len, text.getvalue().splitlines())) <= width
    return text.getvalue()


def seal(folder: Path, report: dict[str, Any]) -> RoundManifest:
    groups = make_groups(5, seed=2)
    return RoundWriter.open(RoundLog(folder)).seal(groups, make_draft(selection=report))


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"tiers": [1, 2]},
        {"dropped": {"a_new_guard": 3}, "shortfalls": {"a_new_reason": 2}, "anchors_short": 2},
        {"quarantine": {}},
        {"quarantine": {"pairs": [{"identities": [0, 1]}]}, "sample_exposure": {"max": 3}},
        {"hardness_edges": [-1.0, 0.0, 1.0], "hardness_counts": [0, 0]},
    ],
)
def test_a_round_of_another_version_is_shown_as_far_as_it_goes(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    text = page(seal(tmp_path, report))
    assert "Round 1" in text
    for name in (*report.get("dropped", ()), *report.get("shortfalls", ())):
        assert name in text


def test_shortfalls_say_why(tmp_path: Path) -> None:
    world = make_world()
    config = selection(strategy="hardest", max_uses_per_identity=9, absolute_margin=0.1)
    out = tmp_path / "o"
    manifest = mine(world.embeddings, world.identities, out=out, config=config).manifest
    assert manifest is not None
    text = page(manifest)
    for part in ("absolute_margin", "negatives together", "guards", "identities as negatives"):
        assert part in text


def test_suspects_are_named_whatever_their_names_hold(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(6, 16))
    true = np.repeat(np.arange(6), 20)
    rows = centres[true] + 0.2 * rng.normal(size=(120, 16))
    given = np.array([f"[bold]person {i}[/nope]" for i in true], dtype=object)
    given[10:20] = "a second name " + "of the first person " * 5
    mined = mine(rows, given.astype(str), out=tmp_path / "o")
    assert mined.report.quarantine.pairs, "the set is made to have one"
    assert mined.manifest is not None
    text = page(mined.manifest, mined.names)
    assert "[bold]person 0[/nope]" in text.replace("\n", "")
    assert "a second name" in text
    assert "identity 0" in page(mined.manifest, None)
    short = RowNames(1, pa.array(["only"]), None)
    assert "only = identity 6" in page(mined.manifest, short)


def test_the_histogram_shows_the_most_frequent_bin_longest(tmp_path: Path) -> None:
    report = {
        "hardness_edges": [-1.0, -0.5, 0.0, 0.5, 1.0],
        "hardness_counts": [0, 1_000, 500, 1],
    }
    lines = [line for line in page(seal(tmp_path, report)).splitlines() if "#" in line]
    assert [line.count("#") for line in lines] == [36, 18, 1]
    assert [line.split()[0] for line in lines] == ["-0.50", "+0.00", "+0.50"]
