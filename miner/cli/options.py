"""Options that several commands share: which configuration, which running service, who asks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel

from miner.config import MinerConfig, load_config, render_config

__all__ = [
    "AddressOption",
    "CaOption",
    "CertificateOption",
    "ConfigOption",
    "KeyOption",
    "PrintConfigOption",
    "SetOption",
    "StateDirOption",
    "TokenFileOption",
    "resolve",
    "resolve_as",
]

Model = TypeVar("Model", bound=BaseModel)

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="key.subkey=value, laid over the file; repeatable."),
]
PrintConfigOption = Annotated[
    bool, typer.Option("--print-config", help="Show the resolved configuration and stop.")
]

AddressOption = Annotated[str | None, typer.Option("--address", help="host:port of the service.")]
StateDirOption = Annotated[
    Path | None, typer.Option("--state-dir", help="Its state folder, on this machine.")
]
CaOption = Annotated[
    Path | None, typer.Option("--tls-ca", help="CA of the service's certificate, PEM; needs TLS.")
]
CertificateOption = Annotated[
    Path | None, typer.Option("--tls-certificate", help="A certificate of one's own, PEM.")
]
KeyOption = Annotated[Path | None, typer.Option("--tls-key", help="Its private key, PEM.")]
TokenFileOption = Annotated[
    Path | None, typer.Option("--token-file", help="Holds a token; else COALFACE_TOKEN.")
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
