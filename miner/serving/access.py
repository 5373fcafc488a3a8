"""Who a client is: what its streams are counted by."""

from typing import Any

__all__ = ["client_of"]


def client_of(context: Any) -> str:
    """The address of the client's machine."""
    peer: str = context.peer()
    return peer.rpartition(":")[0] or peer
