"""``coalface-miner status``: what a running service is doing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live

from miner.cli.options import (
    AddressOption,
    CaOption,
    CertificateOption,
    KeyOption,
    StateDirOption,
    TokenFileOption,
)

if TYPE_CHECKING:
    from miner.app.operator import ServiceStatus

__all__ = ["status"]

REDRAW_S = 1.0


def status(  # noqa: PLR0913, PLR0917 - the options of a command
    address: AddressOption = None,
    state_dir: StateDirOption = None,
    ca_file: CaOption = None,
    certificate_file: CertificateOption = None,
    key_file: KeyOption = None,
    token_file: TokenFileOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, until it stops.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document; with --watch one per line.")
    ] = False,
) -> None:
    """Show rounds, the refresh under way and runs. Exit code 1 if no service answers.

    A run's lag is how many planned steps are in no checkpoint yet.
    """
    from miner.app import operator

    where = operator.address_of(address, state_dir)
    credentials = operator.Credentials(ca_file, certificate_file, key_file, token_file)
    if not watch:
        _show([operator.status(where, credentials)], where, as_json)
        return
    try:
        if as_json or not Console().is_terminal:
            _show(operator.watch(where, credentials), where, as_json, indent=None)
        else:
            _redraw(operator.watch(where, credentials, REDRAW_S), where)
    except KeyboardInterrupt:
        return
    Console(stderr=True).print(f"the service at {where} has stopped", highlight=False)


def _show(
    statuses: Iterable[ServiceStatus], where: str, as_json: bool, indent: int | None = 2
) -> None:
    from miner.cli.status_page import status_json, status_page

    console = Console()
    for number, one in enumerate(statuses):
        if as_json:
            typer.echo(json.dumps(status_json(one, where, time.time()), indent=indent))
            continue
        if number:
            console.rule()
        console.print(status_page(one, where, time.time()))


def _redraw(statuses: Iterator[ServiceStatus], where: str) -> None:
    from miner.cli.status_page import status_page

    with Live(auto_refresh=False, vertical_overflow="crop") as live:
        for one in statuses:
            live.update(status_page(one, where, time.time()), refresh=True)
