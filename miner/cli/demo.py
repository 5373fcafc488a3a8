"""``coalface-miner demo``: the whole loop on one machine, against the field's baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")],
    steps: Annotated[int, typer.Option(min=50, help="Optimizer steps per arm.")] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Glyphs, service, 2-process trainer, evaluation: a table and a picture in minutes."""
    from miner.app.demo import DemoSettings, Pace, run_demo

    run_demo(DemoSettings(out=out, pace=Pace(steps=steps, seed=seed)))
