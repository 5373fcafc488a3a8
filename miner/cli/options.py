"""Options that several commands share: ``--config``, ``--set``, ``--print-config``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel

from miner.config import MinerConfig, load_config, render_config

__all__ = ["ConfigOption", "PrintConfigOption", "SetOption", "resolve", "resolve_as"]

Model = TypeVar("Model", bound=BaseModel)

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="key.subkey=value, laid over the file; repeatable."),
]
PrintConfigOption = Annotated[
    bool, typer.Option("--print-config", help="Show the resolved configuration and stop.")
]


def resolve(config: Path | None, overrides: list[str] | None, print_config: bool) -> MinerConfig:
    """Load the configuration of a service, as `resolve_as`."""
    return resolve_as(MinerConfig, config, overrides, print_config)


def resolve_as(
    model: type[Model], config: Path | None, overrides: list[str] | None, print_config: bool
) -> Model:
    """Load the configuration; with ``print_config`` show it and end the command."""
    settings = load_config(model, config, overrides or ())
    if print_config:
        typer.echo(render_config(settings), nl=False)
        raise typer.Exit
    return settings
