"""``coalface-miner drain``: stop a service without breaking a stream."""

from __future__ import annotations

import typer

from miner.cli.status import AddressOption, StateDirOption

__all__ = ["drain"]


def drain(address: AddressOption = None, state_dir: StateDirOption = None) -> None:
    """Stop a service as SIGTERM does: streams end at a step boundary, then its process ends.

    Returns once the service has been told; trainers go on as soon as another one is there.
    """
    from miner.app import operator

    where = operator.address_of(address, state_dir)
    num_streams = operator.drain(where)
    typer.echo(f"{where} is draining, {num_streams:,} streams are being ended")
