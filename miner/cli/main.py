"""The command line of the miner: one thin command per task; errors end in one line."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from miner import __version__
from miner.cli.dataset import glyphs, ingest
from miner.cli.demo import demo
from miner.cli.drain import drain
from miner.cli.offline import export, mine, show
from miner.cli.serve import serve
from miner.cli.sheet import sheet
from miner.cli.status import status
from miner.cli.token import token
from miner.cli.verify import verify
from miner.errors import CoalfaceError, ConfigError
from miner.logs import LOG_FORMAT_VARIABLE, LogFormat, chosen_format, set_up_logs

__all__ = ["app", "main"]

app = typer.Typer(
    name="coalface-miner",
    help="Mines hard negatives over a whole dataset while a model trains.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(drain)
app.command()(export)
app.command()(glyphs)
app.command()(ingest)
app.command()(mine)
app.command()(serve)
app.command()(sheet)
app.command()(show)
app.command()(status)
app.command()(token)
app.command()(verify)


def _show_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"coalface-miner {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also log details.")] = False,
    version: Annotated[  # noqa: ARG001 - typer calls _show_version
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option(envvar=LOG_FORMAT_VARIABLE, help="Text, or one JSON object per line."),
    ] = LogFormat.TEXT,
) -> None:
    """Set up logging for every command."""
    level, errors = logging.DEBUG if verbose else logging.INFO, Console(stderr=True)
    bright = RichHandler(console=errors, show_path=False) if errors.is_terminal else None
    set_up_logs(level, log_format, bright)
    if not verbose:  # it lists every processor that it was not built for
        logging.getLogger("faiss").setLevel(logging.WARNING)


def main() -> None:
    """Entry point of ``coalface-miner`` and ``python -m miner``.

    Exit codes: 0 done; 1 failed, with one line that says why; 2 wrong usage or configuration.
    """
    try:
        app()
    except CoalfaceError as exc:
        kind = type(exc).__name__
        if chosen_format() is LogFormat.JSON:
            logging.getLogger("miner").error("%s", exc, extra={"error": kind})
        else:
            Console(stderr=True).print(f"[bold red]{kind}[/]: ", end="")
            Console(stderr=True).print(str(exc), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(exc, ConfigError) else 1)
