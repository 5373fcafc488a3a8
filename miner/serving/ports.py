"""Opens a server's port: in plain, or with certificates that are renewed while it serves.

It knows nothing of what is served, nor of who may ask.
"""

from __future__ import annotations

from typing import Any

import grpc

from miner.errors import ConfigError
from miner.serving.certificates import Certificates, TlsConfig, read_certificates
from miner.serving.watched import Watched

__all__ = ["bind", "join_address"]


def bind(server: Any, host: str, port: int, tls: TlsConfig | None) -> int:
    """Have the server listen; the port that was bound, which differs where 0 was asked for.

    Raises:
        ConfigError: The port is taken, there is no such host, or a file of ``tls`` is wrong.
    """
    address = join_address(host, port)
    try:
        if tls is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, _credentials(tls))
    except RuntimeError as exc:
        raise ConfigError(f"cannot listen on {address}: {exc}; choose another port") from exc
    if bound == 0:
        raise ConfigError(f"cannot listen on {address}: choose another host or port")
    return int(bound)


def join_address(host: str, port: int) -> str:
    """``host:port``, with brackets where the host holds colons itself."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _credentials(tls: TlsConfig) -> Any:
    watched = Watched(tls.files, lambda: read_certificates(tls))
    in_use = watched.value

    def newer() -> Any:
        """Asked by gRPC before each handshake; None: what it has is the newest."""
        nonlocal in_use
        newest = watched.value
        if newest is in_use:
            return None
        in_use = newest
        return _for_grpc(newest)

    return grpc.dynamic_ssl_server_credentials(
        _for_grpc(in_use), newer, require_client_authentication=tls.client_ca_file is not None
    )


def _for_grpc(certificates: Certificates) -> Any:
    pair = (certificates.key_pem, certificates.certificate_pem)
    return grpc.ssl_server_certificate_configuration(
        [pair], root_certificates=certificates.client_ca_pem
    )
