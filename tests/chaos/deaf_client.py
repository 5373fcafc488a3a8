"""A client that asks for more than a miner could hold, and reads none of it."""

from __future__ import annotations

from typing import Any

from protos.coalface.v1 import mining_pb2
from trainer.feed.client import MinerClient, RunParameters

__all__ = ["DeafClient"]

NUM_STEPS = 4000
"""With samples of 4 KiB some 400 MB."""


class DeafClient:
    """One stream of steps with their samples, over a connection of its own."""

    def __init__(self, address: str, batch_rows: int) -> None:
        """Open the run, and a stream of which only the first message is ever read.

        Raises:
            FeedError: The miner refuses.
            grpc.RpcError: It ends the stream at once.
        """
        self._client = MinerClient(address, patience_s=10.0)
        try:
            self._client.open_run(RunParameters(run_id="deaf", batch_rows=batch_rows))
            request = mining_pb2.StreamTripletsRequest(
                run_id="deaf", num_steps=NUM_STEPS, world_size=1, with_payload=True
            )
            self._call: Any = self._client.stream(request)
            next(iter(self._call), None)
        except BaseException:
            self._client.close()
            raise

    @property
    def is_held(self) -> bool:
        """Whether the miner still has the stream open."""
        return bool(self._call.is_active())

    def close(self) -> None:
        self._call.cancel()
        self._client.close()
