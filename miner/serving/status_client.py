"""What an operator asks a service, as plain values; the wire format ends here.

It knows neither files nor terminals. A single attempt each: who looks at a service wants to know
that it is not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc

from miner.errors import (
    CoalfaceError,
    ConfigError,
    ForbiddenError,
    NotReadyError,
    UnauthenticatedError,
)
from miner.serving.backend import RefreshState
from miner.serving.binding import is_loopback
from miner.serving.status import PHASES
from protos.coalface.v1 import mining_pb2, mining_pb2_grpc

__all__ = ["Credentials", "RoundLine", "RunLine", "ServiceStatus", "StatusClient"]

DEADLINE_S = 5.0
TOKEN_VARIABLE = "COALFACE_TOKEN"  # noqa: S105 - the name of the place, not what it holds
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 30_000),  # a watch notices a machine that is gone
    ("grpc.keepalive_timeout_ms", 10_000),
]
KINDS: dict[grpc.StatusCode, type[CoalfaceError]] = {
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: ForbiddenError,
    grpc.StatusCode.UNAVAILABLE: NotReadyError,
    grpc.StatusCode.DEADLINE_EXCEEDED: NotReadyError,
}

Line = TypeVar("Line")
_make_stub: Callable[[grpc.Channel], Any] = mining_pb2_grpc.MiningServiceStub


@dataclass(frozen=True, slots=True)
class RoundLine:
    """A sealed round; fields as in ``RoundSummary`` of the wire."""

    round_id: int
    model_step: int
    strategy: str
    num_groups: int
    num_rows: int
    num_triplets: int
    created_unix_s: float


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run; fields as in ``RunSummary`` of the wire."""

    run_id: str
    planned_steps: int
    committed_step: int
    batch_rows: int

    @property
    def lag_steps(self) -> int:
        """Steps that are planned and in no checkpoint yet."""
        return self.planned_steps - self.committed_step


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What a service tells of itself.

    Attributes:
        version: Of the miner.
        dataset_fingerprint: Of the dataset it serves.
        num_rows, num_identities: Of its catalog.
        rounds: Sealed rounds that are kept, oldest first.
        refresh: How mining stands.
        runs: Runs opened on its log.
    """

    version: str
    dataset_fingerprint: str
    num_rows: int
    num_identities: int
    rounds: tuple[RoundLine, ...]
    refresh: RefreshState
    runs: tuple[RunLine, ...]


@dataclass(frozen=True, slots=True)
class Credentials:
    """How an operator shows who they are, and whom they trust.

    Attributes:
        ca_file: PEM file of the CA of the service's certificate; None: unencrypted.
        certificate_file: PEM file of a certificate of one's own, with its ``key_file``.
        key_file: Its private key.
        token_file: File that holds a token alone; None: ``COALFACE_TOKEN``, if that is set.

    Raises:
        ConfigError: A certificate without its key or without a CA, which would not be used.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    token_file: Path | None = None

    def __post_init__(self) -> None:
        own = (self.certificate_file, self.key_file)
        if own != (None, None) and None in (*own, self.ca_file):
            raise ConfigError(
                "--tls-certificate, --tls-key and --tls-ca go together: a certificate is shown "
                f"over TLS only; got {own[0]}, {own[1]} and {self.ca_file}"
            )

    def channel(self, address: str) -> grpc.Channel:
        """A new connection.

        Raises:
            ConfigError: A file cannot be read.
        """
        if self.ca_file is None:
            # A proxy from the environment would see the token.
            direct = [("grpc.enable_http_proxy", 0)] if _is_this_machine(address) else []
            return grpc.insecure_channel(address, options=[*OPTIONS, *direct])
        own = (_read(path) if path else None for path in (self.key_file, self.certificate_file))
        credentials = grpc.ssl_channel_credentials(_read(self.ca_file), *own)
        return grpc.secure_channel(address, credentials, options=OPTIONS)

    def metadata(self, address: str) -> tuple[tuple[str, str], ...]:
        """What goes with each request.

        Raises:
            ConfigError: The token cannot be read, or would leave this machine unencrypted.
        """
        if self.token_file is None:
            token = os.environ.get(TOKEN_VARIABLE, "").strip()
        else:
            token = _read(self.token_file).decode("latin-1").strip()
        if not token:
            return ()
        if self.ca_file is None and not _is_this_machine(address):
            raise ConfigError(f"a token is not sent to {address} unencrypted: give --tls-ca")
        return (("authorization", f"Bearer {token}"),)


class StatusClient:
    """A connection to one service; a context manager.

    Every method raises NotReadyError where no service answers, and UnauthenticatedError or
    ForbiddenError where it wants other credentials.
    """

    def __init__(self, address: str, credentials: Credentials | None = None) -> None:
        self.address = address
        credentials = credentials or Credentials()
        self._has_tls = credentials.ca_file is not None
        self._metadata = credentials.metadata(address)
        self._channel = credentials.channel(address)
        self._stub = _make_stub(self._channel)

    def status(self) -> ServiceStatus:
        """What is served, what is being mined, and which runs are open."""
        with self._translated():
            request = mining_pb2.GetStatusRequest()
            return _status_of(self._ask("GetStatus", request))

    def watch(self, min_interval_s: float) -> Iterator[ServiceStatus]:
        """The status now and whenever it has changed; ends when the service drains."""
        with self._translated():
            request = mining_pb2.WatchStatusRequest(min_interval_s=min_interval_s)
            for answer in self._stub.WatchStatus(request, metadata=self._metadata):
                yield _status_of(answer)

    def drain(self) -> int:
        """Have the service stopped as by SIGTERM; how many streams are being ended."""
        with self._translated():
            request = mining_pb2.DrainRequest()
            return int(self._ask("Drain", request).num_streams)

    def close(self) -> None:
        """Give up the connection; a watch under way ends with an error."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _ask(self, method: str, request: Any) -> Any:
        call = getattr(self._stub, method)
        return call(request, timeout=DEADLINE_S, metadata=self._metadata)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as exc:
            code, text = exc.code(), str(exc.details())
            kind = KINDS.get(code, CoalfaceError)
            if kind is NotReadyError:
                # What gRPC says of a connection is a chain of causes; the last one is the reason.
                tls = "" if self._has_tls else " And does it want TLS?"
                text = f"{text.rpartition(': ')[2]}; is `coalface-miner serve` running there?{tls}"
            raise kind(f"no answer from {self.address} ({code.name}): {text}") from exc


def _is_this_machine(address: str) -> bool:
    return is_loopback(address.rpartition(":")[0].strip("[]"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc


def _status_of(answer: mining_pb2.GetStatusResponse) -> ServiceStatus:
    names = {number: name for name, number in PHASES.items()}
    refresh = {field.name: getattr(answer.refresh, field.name) for field in fields(RefreshState)}
    refresh["phase"] = names.get(answer.refresh.phase, "idle")
    return ServiceStatus(
        version=answer.version,
        dataset_fingerprint=answer.dataset_fingerprint,
        num_rows=answer.num_rows,
        num_identities=answer.num_identities,
        rounds=tuple(_line(RoundLine, summary) for summary in answer.rounds),
        refresh=RefreshState(**refresh),
        runs=tuple(_line(RunLine, summary) for summary in answer.runs),
    )


def _line(kind: type[Line], summary: Any) -> Line:
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: getattr(summary, name) for name in names})
