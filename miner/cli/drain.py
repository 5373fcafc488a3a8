"""``coalface-miner drain``: stop a service without breaking a stream."""

from __future__ import annotations

import typer

from miner.cli.options import (
    AddressOption,
    CaOption,
    CertificateOption,
    KeyOption,
    StateDirOption,
    TokenFileOption,
)

__all__ = ["drain"]


def drain(  # noqa: PLR0913, PLR0917 - the options of a command
    address: AddressOption = None,
    state_dir: StateDirOption = None,
    ca_file: CaOption = None,
    certificate_file: CertificateOption = None,
    key_file: KeyOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Stop a service as SIGTERM does: streams end at a step boundary, then its process ends.

    Returns once the service has been told; trainers go on as soon as another one is there.
    """
    from miner.app import operator

    where = operator.address_of(address, state_dir)
    credentials = operator.Credentials(ca_file, certificate_file, key_file, token_file)
    num_streams = operator.drain(where, credentials)
    typer.echo(f"{where} is draining, {num_streams:,} streams are being ended")
