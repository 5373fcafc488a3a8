"""``coalface-miner glyphs`` and ``ingest``: make a dataset, lay out its row store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from miner.cli.options import ConfigOption, PrintConfigOption, SetOption, resolve
from miner.cli.progress import progress_bar

__all__ = ["glyphs", "ingest"]


def glyphs(
    out: Annotated[Path, typer.Option(help="Folder of the dataset; made if missing.")],
    fonts: Annotated[
        list[Path] | None,
        typer.Option(help="Font file or folder of fonts; may be given more than once."),
    ] = None,
) -> None:
    """Render a dataset of glyphs: identity = character, sample = one font's rendering.

    Without --fonts, the fonts that matplotlib ships: some 6,000 identities, no download.
    """
    from miner.data.glyphs import write_glyphs

    with progress_bar("rendering fonts") as move:
        report = write_glyphs(out, fonts=fonts or (), on_progress=move)
    console = Console()
    console.print(
        f"{report.num_samples:,} glyphs of {report.num_identities:,} characters in "
        f"{report.num_fonts} fonts: {report.num_train:,} train, {report.num_test:,} test"
    )
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in report.skipped.items())
    console.print(f"skipped: {skipped or 'nothing'}", style="dim")
    console.print(str(report.path))


def ingest(
    config: ConfigOption = None,
    overrides: SetOption = None,
    print_config: PrintConfigOption = False,
) -> None:
    """Check the dataset and write its row store, from which samples are read at random."""
    from miner.data import ingest as write_store

    settings = resolve(config, overrides, print_config)
    with progress_bar("writing the row store") as move:
        report = write_store(settings.dataset, settings.store_path, on_progress=move)
    Console().print(
        f"{report.num_rows:,} rows of {report.num_identities:,} identities, "
        f"fingerprint {report.fingerprint[:12]}: {report.path}"
        + (" (was there already)" if report.reused else ""),
        soft_wrap=True,
    )
