"""``coalface-miner verify``: whether everything on disk is as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["verify"]


def verify(
    state_dir: Annotated[Path, typer.Argument(help="State folder of a service.")],
    store_dir: Annotated[
        Path | None, typer.Option("--store", help="Row store, if not in state_dir.")
    ] = None,
    snapshots_dir: Annotated[
        str | None,
        typer.Option("--snapshots", help="Path or URI of the snapshots, if not in state_dir."),
    ] = None,
    archive_uri: Annotated[
        str | None,
        typer.Option("--archive", help="Also restore this archive somewhere, and check that."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Skip the content of chunks, samples, snapshots, weights."),
    ] = False,
) -> None:
    """Check rounds, run plans, row store, snapshots and weights; print problems, one per line.

    Exit code 1 if there is one. Changes nothing; a service may be running on the folder.
    """
    from miner.app.verify import verify_state

    num_problems, checked = 0, []
    for part in verify_state(
        state_dir, store_dir, snapshots_dir, archive_uri=archive_uri, quick=quick
    ):
        checked.append(part.what)
        num_problems += len(part.problems)
        for problem in part.problems:
            typer.echo(" ".join(problem.split()))
    plural = "" if num_problems == 1 else "s"
    found = f"{num_problems:,} problem{plural}" if num_problems else "all is well"
    typer.echo(f"{state_dir}: {', '.join(checked)}: {found}", err=num_problems > 0)
    raise typer.Exit(int(num_problems > 0))
