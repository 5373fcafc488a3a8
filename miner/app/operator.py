"""What an operator asks a running service. Starts nothing, writes nothing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

from miner.app.endpoint import read_address
from miner.errors import CoalfaceError, ConfigError
from miner.serving.status_client import Credentials, ServiceStatus, StatusClient

__all__ = ["Credentials", "ServiceStatus", "address_of", "drain", "status", "watch"]

WATCH_INTERVAL_S = 0.5


def address_of(address: str | None, state_dir: Path | None) -> str:
    """The address that was given, or that of the service on a state folder.

    Raises:
        ConfigError: Neither or both were given.
        NotReadyError: No service runs on the folder.
    """
    if address is not None and state_dir is None:
        return address
    if state_dir is not None and address is None:
        return read_address(state_dir)
    raise ConfigError("say which service: either --address host:port or --state-dir DIR")


def status(address: str, credentials: Credentials | None = None) -> ServiceStatus:
    """As `StatusClient.status`."""
    with StatusClient(address, credentials) as client:
        return client.status()


def drain(address: str, credentials: Credentials | None = None) -> int:
    """As `StatusClient.drain`."""
    with StatusClient(address, credentials) as client:
        return client.drain()


def watch(
    address: str,
    credentials: Credentials | None = None,
    at_least_every_s: float | None = None,
) -> Iterator[ServiceStatus]:
    """The status now and whenever it has changed, until the service drains.

    Args:
        address: ``host:port``.
        credentials: Of the operator.
        at_least_every_s: Also give the newest again when so long nothing has changed, for who
            shows how old things are.

    Raises:
        CoalfaceError: As `StatusClient`.
    """
    news: queue.Queue[ServiceStatus | CoalfaceError | None] = queue.Queue()

    def read(client: StatusClient) -> None:
        try:
            for one in client.watch(WATCH_INTERVAL_S):
                news.put(one)
            news.put(None)
        except CoalfaceError as exc:
            news.put(exc)

    with StatusClient(address, credentials) as client:
        threading.Thread(target=read, args=(client,), name="watch", daemon=True).start()
        newest: ServiceStatus | None = None
        while True:
            try:
                # Nothing is there to be shown again before the first.
                found = news.get(timeout=at_least_every_s if newest is not None else None)
            except queue.Empty:
                assert newest is not None
                yield newest
                continue
            if found is None:
                return
            if isinstance(found, CoalfaceError):
                raise found
            newest = found
            yield newest
