"""``coalface-miner token``: a token for a client, shown once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from miner.serving.roles import Role

__all__ = ["token"]


def token(
    name: Annotated[str, typer.Argument(help="What the client is called in logs and limits.")],
    file: Annotated[Path, typer.Option(help="Tokens file of the service; made if missing.")],
    role: Annotated[
        Role,
        typer.Option(help="read: train. write: also announce weights. admin: also stop it."),
    ] = "read",
) -> None:
    """Print a new random token, and add its digest to a tokens file.

    The token is shown this once and kept nowhere. A running service knows it within seconds.
    """
    from miner.serving.tokens import add_token

    typer.echo(add_token(file, name, role))
