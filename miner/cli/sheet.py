"""``coalface-miner sheet``: a round's groups as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["sheet"]


def sheet(
    state_dir: Annotated[Path, typer.Argument(help="State folder of a service.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    round_id: Annotated[int | None, typer.Option("--round", help="Default: the newest.")] = None,
    store_dir: Annotated[Path | None, typer.Option(help="Row store, if not in state_dir.")] = None,
    num_groups: Annotated[int, typer.Option("--groups", min=1, max=200)] = 12,
) -> None:
    """Draw mined groups: anchor, positive and negatives with their similarities."""
    from miner.app.contact_sheet import draw_sheet

    draw_sheet(state_dir, store_dir or state_dir / "store", out, round_id, num_groups)
    typer.echo(str(out))
