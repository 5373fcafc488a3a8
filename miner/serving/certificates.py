"""The files of TLS: where they are, and whether they can be put into service.

It knows nothing of gRPC, nor of who may do what. Files are read whole and checked before their
content goes into service, so that a key never meets the certificate of another.
"""

from __future__ import annotations

import logging
import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from miner.errors import ConfigError

__all__ = ["Certificates", "TlsConfig", "read_certificates"]

logger = logging.getLogger(__name__)


class TlsConfig(BaseModel):
    """Which certificate the service shows, and whose certificates it wants to see."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    certificate_file: Path = Field(
        description="PEM file of the service's certificate, followed by those that lead to its CA. "
        "Read again when it changes: certificates are renewed while trainers train."
    )
    key_file: Path = Field(
        description="PEM file of its private key, unencrypted: a service that is restarted at "
        "night cannot ask for a password. Readable by the service alone."
    )
    client_ca_file: Path | None = Field(
        default=None,
        description="PEM file of the CAs whose clients are let in; each must show a certificate. "
        "None: clients show none, and a token tells who they are.",
    )

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are configured."""
        pair = (self.certificate_file, self.key_file)
        return pair if self.client_ca_file is None else (*pair, self.client_ca_file)


@dataclass(frozen=True, slots=True)
class Certificates:
    """The content of the files, which fits together."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    client_ca_pem: bytes | None


def read_certificates(config: TlsConfig) -> Certificates:
    """What the files hold, if a server can be started with it.

    Raises:
        ConfigError: A file cannot be read, is not PEM, the key is encrypted or is not that of the
            certificate, or a file was written to meanwhile. The text names the file.
    """
    contents = [_read(path) for path in config.files]
    _check_pair(config)
    if config.client_ca_file is not None:
        _check_ca(config.client_ca_file)
    if contents != [_read(path) for path in config.files]:
        raise ConfigError(f"serving.tls: {config.certificate_file}, its key or CA is being written")
    _warn_of_readers(config.key_file)
    certificate_pem, key_pem, *client_ca_pem = contents
    return Certificates(certificate_pem, key_pem, client_ca_pem[0] if client_ca_pem else None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"cannot read {path} of serving.tls: {exc.strerror}") from exc


def _warn_of_readers(key: Path) -> None:
    try:
        mode = key.stat().st_mode
    except OSError as exc:
        raise ConfigError(f"cannot read {key} of serving.tls: {exc.strerror}") from exc
    if mode & stat.S_IROTH:
        logger.warning("serving.tls.key_file %s can be read by every user of this machine", key)


def _check_pair(config: TlsConfig) -> None:
    certificate, key = config.certificate_file, config.key_file
    try:
        # An empty password, or OpenSSL would ask the terminal for that of an encrypted key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: "")
    except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"serving.tls: {certificate} and {key} are no certificate in PEM with its unencrypted "
            f"private key: {exc}"
        ) from exc


def _check_ca(path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"serving.tls: {path} holds no CA certificate in PEM: {exc}") from exc
