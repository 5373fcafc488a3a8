"""The HTTP endpoint that Prometheus scrapes, on threads of its own.

    open --> listening --close()--> closed

It knows nothing of what is told.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server

from miner.errors import ConfigError
from miner.serving.metrics.config import MetricsConfig
from miner.serving.ports import join_address

__all__ = ["MetricsEndpoint"]


class MetricsEndpoint:
    """Serves a registry until it is closed.

    Attributes:
        port: The one that was really bound.
        address: ``host:port`` with it.
    """

    def __init__(self, config: MetricsConfig, registry: CollectorRegistry) -> None:
        """Listen.

        Raises:
            ConfigError: The port is taken, or there is no such host on this machine.
        """
        host, port = config.host, config.port or 0
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as exc:
            raise ConfigError(
                f"cannot serve metrics on metrics.host={host!r}, metrics.port={port}: {exc}; "
                "choose another port, or leave metrics.port out"
            ) from exc
        self.port: int = self._server.server_port
        self.address = join_address(host, self.port)

    def close(self) -> None:
        """Stop listening; safe to repeat."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
