"""The demo's result: a table on unseen identities, for the screen, as Markdown and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

__all__ = ["ArmResult", "show_results", "write_results"]

COLUMNS = (
    ("R@1", "recall_at_1"),
    ("id", "recall_at_1_by_identity"),
    ("MAP@R", "map_at_r"),
    ("id", "map_at_r_by_identity"),
    ("AUC", "roc_auc"),
    ("TAR", "tar_at_far"),
)
TIMES = (("train", "training_s"), ("mine", "mining_s"), ("stall", "stalled_s"))
CAPTION = (
    "Percent; id: the figure before it, averaged per identity; AUC: of the ROC curve; TAR: at FAR "
    "1e-3. Seconds: training, mining beside it, stalled while waiting for batches."
)


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One line of the table.

    Attributes:
        name: The arm.
        metrics: On unseen identities, each in [0, 1]; keys as in ``COLUMNS``.
        training_s, mining_s, stalled_s: Seconds in optimizer steps, in refreshes (which run beside
            the training), and waiting for batches.
        num_rounds: Sealed rounds, the random first one included.
    """

    name: str
    metrics: dict[str, float]
    training_s: float = 0.0
    mining_s: float = 0.0
    stalled_s: float = 0.0
    num_rounds: int = 0


def show_results(results: list[ArmResult], console: Console) -> None:
    """Print the table; the best value of each metric is bold."""
    table = Table(
        title="On unseen identities", caption=CAPTION, box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("arm", no_wrap=True)
    for title, _ in COLUMNS + TIMES:
        table.add_column(title, justify="right", no_wrap=True)
    for cells in _cells(results, bold=("[bold green]", "[/]")):
        table.add_row(*cells)
    console.print(table)


def write_results(results: list[ArmResult], folder: Path) -> None:
    """Write ``results.json`` and ``results.md`` into ``folder``."""
    text = json.dumps([asdict(result) for result in results], indent=2)
    (folder / "results.json").write_text(text + "\n", "utf-8")
    titles = ["arm", *(title for title, _ in COLUMNS + TIMES)]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *_cells(results, bold=("**", "**"))]
    markdown = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    (folder / "results.md").write_text(f"{markdown}\n\n{CAPTION}\n", "utf-8")


def _cells(results: list[ArmResult], bold: tuple[str, str]) -> list[list[str]]:
    best = {key: max(result.metrics[key] for result in results) for _, key in COLUMNS}
    rows = []
    for result in results:
        cells = [result.name]
        for _, key in COLUMNS:
            value = result.metrics[key]
            text = f"{100 * value:.1f}"
            cells.append(f"{bold[0]}{text}{bold[1]}" if value == best[key] else text)
        rows.append(cells + [f"{getattr(result, key):.0f}" for _, key in TIMES])
    return rows
