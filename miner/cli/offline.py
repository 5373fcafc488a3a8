"""``coalface-miner mine``, ``export`` and ``show``: rounds without a service."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from miner.cli.options import ConfigOption, PrintConfigOption, SetOption, resolve_as
from miner.cli.progress import progress_bar
from miner.config import MineConfig
from miner.errors import ConfigError, DatasetError

__all__ = ["export", "mine", "show"]

FORMS = "FILE.npy, or FILE:column of a Parquet or Arrow file"

RoundOption = Annotated[
    int | None, typer.Option("--round", min=1, help="Counts from 1. Default: the newest.")
]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Row store of a service, if not in its folder.")
]


class Form(StrEnum):
    """What one row of an exported file is."""

    TRIPLET = "triplet"
    N_TUPLE = "n-tuple"
    LABELED_PAIR = "labeled-pair"
    SUSPECTS = "suspects"


class Format(StrEnum):
    """How an exported file is written."""

    PARQUET = "parquet"
    JSONL = "jsonl"


def mine(  # noqa: PLR0913, PLR0917 - one per option
    embeddings: Annotated[
        str | None, typer.Option(help=f"One float16, float32 or float64 row per sample: {FORMS}.")
    ] = None,
    identities: Annotated[
        str | None, typer.Option(help=f"Integers or text, one per sample: {FORMS}.")
    ] = None,
    ids: Annotated[
        str | None, typer.Option(help=f"Names of the samples, all different: {FORMS}.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the rounds; a further round is added to it.")
    ] = None,
    step: Annotated[
        int, typer.Option(min=0, help="Training step of the embeddings, for strategy curriculum.")
    ] = 0,
    config: ConfigOption = None,
    overrides: SetOption = None,
    print_config: PrintConfigOption = False,
) -> None:
    """Mine one round from embeddings that are there already, and seal it in a folder.

    Needs --embeddings, --identities and --out. Rows are compared by cosine: they are scaled to
    length 1 and float16 and float64 converted; a float32 .npy file of such rows is read in place.
    """
    settings = resolve_as(MineConfig, config, overrides, print_config)
    if embeddings is None or identities is None or out is None:
        raise typer.BadParameter("it needs --embeddings, --identities and --out")
    from miner.app.offline import mine as mine_arrays

    started_s = time.monotonic()
    with progress_bar("searching") as move:
        mined = mine_arrays(
            embeddings,
            identities,
            ids=ids,
            out=out,
            config=settings,
            model_step=step,
            on_progress=move,
        )
    from miner.cli.round_page import describe_tiers

    report = mined.report
    typer.echo(
        f"round {mined.round_id}: {report.num_groups:,} groups of {report.num_anchors:,} anchors, "
        f"{report.num_triplets:,} triplets "
        f"({describe_tiers(report.tiers)}), {time.monotonic() - started_s:.1f} s: {out}"
    )


def export(  # noqa: PLR0913, PLR0917 - one per option
    folder: Annotated[Path, typer.Argument(help="Of mined rounds, or a service's state folder.")],
    out: Annotated[Path, typer.Option(help="File to write; replaced if it is there.")],
    round_id: RoundOption = None,
    form: Annotated[Form, typer.Option(help="What one row of the file is.")] = Form.TRIPLET,
    format_: Annotated[
        Format | None, typer.Option("--format", help="Default: by the suffix of --out.")
    ] = None,
    negatives: Annotated[
        int | None, typer.Option(min=1, help="Of an n-tuple. Default: the most that one has.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help=f"Stands in place of row ids, by position: {FORMS}.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Write a round's triplets, or its suspected identities, to one Parquet or JSON-lines file.

    With --text, and in the forms n-tuple and labeled-pair, the file has just the columns that the
    sentence-transformers trainer takes.
    """
    from miner.app.offline import ExportRequest, export_round

    known = {".parquet": Format.PARQUET, ".pq": Format.PARQUET, ".jsonl": Format.JSONL}
    chosen = format_ or known.get(out.suffix.lower())
    if chosen is None:
        raise ConfigError(f"{out} ends in neither .parquet nor .jsonl: say which with --format")
    if known.get(out.suffix.lower(), chosen) is not chosen:
        raise ConfigError(f"--format {chosen.value} contradicts the name {out}")
    if text is not None and form is Form.SUSPECTS:
        raise ConfigError("--text is for rows, and --form suspects has none")
    if negatives is not None and form is not Form.N_TUPLE:
        raise ConfigError(f"--negatives is for --form n-tuple, not for {form.value}")
    request = ExportRequest(folder, out, round_id, form.value, chosen.value, negatives, text, store)
    report = export_round(request)
    left_out = f", {report.num_left_out:,} with too few negatives left out"
    typer.echo(
        f"round {report.round_id}: {report.num_rows:,} rows"
        + (left_out if report.num_left_out else "")
        + f": {out}"
    )


def show(
    folder: Annotated[Path, typer.Argument(help="Of mined rounds, or a service's state folder.")],
    round_id: RoundOption = None,
    store: StoreOption = None,
) -> None:
    """Print what a round is: how it was made, its triplets, shortfalls and suspects."""
    from miner.app.offline import find_round, open_names
    from miner.cli.round_page import print_round

    _, manifest = find_round(folder, round_id)
    console, names = Console(), None
    try:
        names = open_names(folder, manifest.dataset_fingerprint, store)
    except DatasetError as exc:
        if store is not None:
            raise
        console.print(Text(f"without names: {exc}", style="yellow"))
    print_round(console, manifest, names)
