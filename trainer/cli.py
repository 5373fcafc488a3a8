"""The command ``coalface-trainer`` (or ``python -m trainer``): train, evaluate.

    coalface-trainer train --config train.yaml --set optimizer.lr=3e-4
    torchrun --nproc-per-node 2 -m trainer train --config train.yaml
    coalface-trainer evaluate --weights W --dataset D --split-column split --split test --out J

Exit codes: 0 done; 1 failed, with one line that says why; 2 wrong usage or configuration; 128 + N
stopped by signal N at a step boundary, with a checkpoint (143 for SIGTERM): the same command goes
on from there.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from trainer import __version__
from trainer.config import EncoderConfig, TrainerConfig
from trainer.config_file import load_config, render_config
from trainer.errors import ConfigError, TrainerError
from trainer.logs import LOG_FORMAT_VARIABLE, LogFormat, chosen_format, set_up_logs

__all__ = ["app", "main"]

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT_S = 1800.0

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value, over the file; may be repeated"),
]


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show and exit")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="tracebacks and debug logs")] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option(envvar=LOG_FORMAT_VARIABLE, help="text, or one JSON object per line"),
    ] = LogFormat.TEXT,
) -> None:
    """Train on triplets streamed from a Coalface miner, and evaluate what was trained."""
    rank = int(os.environ.get("RANK", "0"))
    level = logging.DEBUG if debug else logging.INFO if rank == 0 else logging.WARNING
    set_up_logs(level, log_format, rank)


@app.command()
def train(
    config: ConfigOption = None,
    overrides: SetOption = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="show the resolved configuration and exit")
    ] = False,
) -> None:
    """Train, or go on training, until the run's steps are done."""
    settings = load_config(TrainerConfig, config, overrides or [])
    if print_config:
        typer.echo(render_config(settings), nl=False)
        return
    from trainer.distributed import open_world
    from trainer.loop import train as run
    from trainer.miner_link import GrpcMiner

    timeout_s = settings.miner.patience_s + COLLECTIVE_TIMEOUT_S
    with open_world(settings.device, timeout_s=timeout_s) as world:
        summary = run(settings, GrpcMiner(settings), world)
    if world.is_first:
        typer.echo(
            f"{summary.ended}: {summary.num_steps} steps in {summary.wall_s:.1f} s "
            f"({summary.images_per_s:.0f} images/s, {summary.stalled_s:.1f} s without a batch), "
            f"{len(summary.rounds)} rounds; next step {summary.next_step}; see {settings.out}"
        )
    code = 128 + (summary.signal or signal.SIGTERM) if summary.ended == "stopped" else 0
    if world.size > 1:
        # All is written and the peers have parted. Seen otherwise: a rank that had finished well
        # was aborted by a thread of torch's or gRPC's while the interpreter took itself down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code)


@app.command()
def evaluate(  # noqa: PLR0913, PLR0917 - one parameter per command-line option
    dataset: Annotated[Path, typer.Option(help="file or folder of Parquet or Arrow")],
    weights: Annotated[Path | None, typer.Option(help="safetensors file")] = None,
    untrained: Annotated[bool, typer.Option(help="freshly drawn weights instead")] = False,
    split_column: Annotated[str | None, typer.Option(help="column that holds the split")] = None,
    split: Annotated[str, typer.Option(help="value of that column")] = "test",
    id_column: Annotated[str, typer.Option()] = "sample_id",
    identity_column: Annotated[str, typer.Option()] = "identity",
    payload_column: Annotated[
        list[str] | None, typer.Option(help="what the preprocessing reads [default: image]")
    ] = None,
    encoder_config: Annotated[
        Path | None, typer.Option("--encoder", help="YAML: build, preprocess, args")
    ] = None,
    seed: Annotated[int, typer.Option(help="of untrained weights and intervals")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures")] = None,
) -> None:
    """Measure an encoder on labelled samples, best of identities it was not trained on."""
    if (weights is None) != untrained:
        raise ConfigError("give either --weights FILE or --untrained")
    from trainer.evaluate import EvaluationJob
    from trainer.evaluate import evaluate as run
    from trainer.samples import SampleSet

    job = EvaluationJob(
        samples=SampleSet(
            path=dataset,
            split_column=split_column,
            split=split,
            id_column=id_column,
            identity_column=identity_column,
            payload_columns=tuple(payload_column or ["image"]),
        ),
        encoder=load_config(EncoderConfig, encoder_config),
        weights=weights,
        seed=seed,
    )
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("embedding")
        result = run(
            job,
            out=out,
            on_progress=lambda done, all_: bar.update(task, completed=done, total=all_),
        )
    _show(result)


def main() -> None:
    """Run the command; errors end in one line on stderr."""
    is_debug = "--debug" in sys.argv[1:]
    try:
        app()
    except (TrainerError, OSError) as exc:
        if is_debug:
            raise
        if chosen_format() is LogFormat.JSON:
            logger.error("%s", exc, extra={"error": type(exc).__name__})
        else:
            typer.echo(f"error: {exc}", err=True)
        sys.exit(2 if isinstance(exc, ConfigError) else 1)


def _show(result: dict[str, Any]) -> None:
    for key, value in result.items():
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        if isinstance(value, dict):
            text = "{value:.4f}  (95 %: {low:.4f} to {high:.4f})".format(**value)
        typer.echo(f"{key:22} {text}")
