"""The gRPC server: binds the port, answers health checks, and drains without breaking a stream.

It knows nothing of what is served.

Lifecycle: ``SERVING --drain()--> NOT_SERVING --(streams ended)--> stopped``.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from miner.data.row_store import RowStore
from miner.rounds import RoundLog
from miner.serving.access import Access
from miner.serving.allocator import keep_freed_memory
from miner.serving.backend import Backend
from miner.serving.binding import check_binding
from miner.serving.config import ServingConfig
from miner.serving.difficulty import DifficultyBook
from miner.serving.gate import Gate
from miner.serving.introspection import add_introspection, introspection_options
from miner.serving.metrics.registry import registry_of
from miner.serving.metrics.rpcs import RpcMetering
from miner.serving.ports import bind, join_address
from miner.serving.runs import RunStore
from miner.serving.service import MiningService, Parts
from protos.coalface.v1 import mining_pb2_grpc

__all__ = ["SERVICE_NAME", "MiningServer", "start_server"]

logger = logging.getLogger(__name__)

SERVICE_NAME = "coalface.v1.MiningService"
POOL_THREADS = 4
SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),  # or a second server would bind the same port without an error
    # Clients ping idle streams; without this they are cut off with "Too many pings".
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),  # notices trainers whose machine is gone
    ("grpc.keepalive_timeout_ms", 20_000),
]

# Generated code carries no types.
_mining: Any = mining_pb2_grpc
_health: Any = health
_health_grpc: Any = health_pb2_grpc


class MiningServer:
    """A running server; made by :func:`start_server` on the event loop that it lives on."""

    def __init__(self, config: ServingConfig, parts: Parts) -> None:
        self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="serving")
        self._service = MiningService(parts, self._pool)
        self._health = _health.aio.HealthServicer()
        limit = ("grpc.max_receive_message_length", config.max_request_bytes)
        options = [*SERVER_OPTIONS, limit, *introspection_options(config)]
        gate = Gate(Access(config), config.max_streams_per_client)
        # Metering comes first, so that it sees what the gate refuses.
        interceptors = [RpcMetering(SERVICE_NAME, parts.meters), gate]
        self._server = grpc.aio.server(
            interceptors=interceptors,
            options=options,
            maximum_concurrent_rpcs=config.max_concurrent_rpcs,
        )
        _mining.add_MiningServiceServicer_to_server(self._service, self._server)
        _health_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.registry = registry_of(parts)
        self._host = config.host
        add_introspection(self._server, config)
        self.port = bind(self._server, config.host, config.port, config.tls)

    @property
    def address(self) -> str:
        """``host:port``, with the port that was really bound."""
        return join_address(self._host, self.port)

    async def start(self) -> None:
        """Accept requests."""
        await self._server.start()
        await self._health.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        logger.info("serving on %s", self.address)

    async def drain(self, grace_s: float) -> None:
        """Stop without breaking a stream.

        Health checks turn NOT_SERVING and new streams are refused as UNAVAILABLE; live streams
        send what is ready and end with OK, so their clients ask elsewhere from the next step. What
        is still under way after ``grace_s`` is cut off.
        """
        deadline_s = time.monotonic() + grace_s
        logger.info("draining %s for up to %g s", self.address, grace_s)
        await self._health.enter_graceful_shutdown()
        await self._service.drain(grace_s)
        await self._server.stop(max(0.0, deadline_s - time.monotonic()))
        self._pool.shutdown(wait=False, cancel_futures=True)
        logger.info("stopped %s", self.address)


async def start_server(
    config: ServingConfig, log: RoundLog, runs: RunStore, row_store: RowStore, backend: Backend
) -> MiningServer:
    """Serve ``log`` and ``runs`` on ``config.host:config.port``; port 0 takes any free one.

    Raises:
        ConfigError: If the port cannot be bound, a file of certificates or tokens is wrong, or
            `check_binding` refuses.
    """
    check_binding(config)
    keep_freed_memory()
    difficulties = DifficultyBook(log.root, row_store.manifest.num_identities)
    server = MiningServer(config, Parts(config, log, runs, row_store, difficulties, backend))
    await server.start()
    return server
