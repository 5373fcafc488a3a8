"""Where the service may listen: nothing is open to a network, or to just anybody, by accident.

It knows no gRPC, so that a wrong setting is told before anything is started.
"""

from __future__ import annotations

import ipaddress
import logging

from miner.errors import ConfigError
from miner.serving.certificates import read_certificates
from miner.serving.config import ServingConfig
from miner.serving.metrics.config import MetricsConfig
from miner.serving.tokens import read_tokens

__all__ = ["check_binding", "check_files", "is_loopback"]

logger = logging.getLogger(__name__)


def check_binding(config: ServingConfig, metrics: MetricsConfig | None = None) -> None:
    """Refuse what lets in more than was asked for.

    On this machine alone, anything goes but TLS that lets everybody in; on an address that others
    reach, only TLS with tokens or client certificates, and no metrics, which have neither.
    ``allow_insecure_bind`` takes the rest.

    Raises:
        ConfigError: It says what is missing, and what to do.
    """
    if metrics is not None and metrics.port is not None:
        _check_metrics(metrics, config.allow_insecure_bind)
    is_local, tls = is_loopback(config.host), config.tls
    knows_clients = config.tokens_file is not None or (tls is not None and tls.client_ca_file)
    if tls is None:
        missing = "" if is_local else "no TLS" if knows_clients else "neither TLS nor tokens"
    else:
        missing = "" if knows_clients else "neither tokens nor client certificates"
    if not missing:
        return
    reach = "" if is_local else " is reachable from other machines, and"
    if not config.allow_insecure_bind:
        raise ConfigError(
            f"serving.host={config.host!r}{reach} would be served with {missing}: set serving.tls "
            "with serving.tokens_file or serving.tls.client_ca_file, use 127.0.0.1, or set "
            "serving.allow_insecure_bind=true on a network that you trust"
        )
    logger.warning("serving.host=%r%s is served with %s, as asked for", config.host, reach, missing)


def _check_metrics(metrics: MetricsConfig, is_asked_for: bool) -> None:
    if is_loopback(metrics.host):
        return
    if not is_asked_for:
        raise ConfigError(
            f"metrics.host={metrics.host!r} is reachable from other machines, and figures and run "
            "ids would be served to everybody: use 127.0.0.1, or set "
            "serving.allow_insecure_bind=true on a network that you trust"
        )
    logger.warning("metrics.host=%r is served without credentials, as asked for", metrics.host)


def check_files(config: ServingConfig) -> None:
    """Read what the server will read.

    Raises:
        ConfigError: A certificate, key or tokens file is wrong; the text names it.
    """
    if config.tls is not None:
        read_certificates(config.tls)
    if config.tokens_file is not None:
        read_tokens(config.tokens_file)


def is_loopback(host: str) -> bool:
    """Whether what is sent to a host stays on this machine; False where that is not plain."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
