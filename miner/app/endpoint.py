"""Where a running service tells its address: ``endpoint.json`` in its state folder."""

from __future__ import annotations

import json
from pathlib import Path

from miner.errors import NotReadyError

__all__ = ["ENDPOINT_FILE", "read_address"]

ENDPOINT_FILE = "endpoint.json"


def read_address(state_dir: Path) -> str:
    """``host:port`` of the service that runs on a state folder.

    Raises:
        NotReadyError: No service runs there.
    """
    path = state_dir / ENDPOINT_FILE
    try:
        address: str = json.loads(path.read_bytes())["address"]
    except FileNotFoundError as exc:
        raise NotReadyError(
            f"no service runs on {state_dir}: it has no {ENDPOINT_FILE}; start one with "
            "`coalface-miner serve`, or say where it is with --address"
        ) from exc
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise NotReadyError(f"{path} cannot be read ({exc}): use --address") from exc
    return address
