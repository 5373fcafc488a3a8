"""Coalface's miner: embeds a whole dataset, mines global hard negatives, streams them over gRPC.

Without a service, from embeddings that are there already::

    from miner import mine

    mined = mine(embeddings, identities, out="rounds")
    mined.triplets()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miner.app.offline import MinedRound, mine

__all__ = ["MinedRound", "mine"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the offline miner when it is first asked for: the package itself loads no library."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from miner.app import offline

    return getattr(offline, name)
