"""How a client shows who it is, and whom it trusts: certificates and a token, read where they lie.

It knows no request. Files are read when they are needed, so that they can be renewed while a
trainer trains; one that cannot be read any more counts as it was. A token never becomes part of an
error, of a log line or of anything's repr, and leaves this machine only over TLS.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from trainer.errors import ConfigError

__all__ = ["TOKEN_VARIABLE", "Access", "TlsFiles"]

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "COALFACE_TOKEN"  # noqa: S105 - the name of the place, not what it holds
"""Environment variable of the token, where no file is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """What TLS needs to know.

    Attributes:
        ca_file: PEM file of the CA that the miner's certificate comes from.
        certificate_file: PEM file of this client's certificate, where the miner asks for one.
        key_file: PEM file of its private key, unencrypted.
        server_name: Name to look for in the miner's certificate; empty: the host of the address.
    """

    ca_file: Path
    certificate_file: Path | None = None
    key_file: Path | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ConfigError(
                "tls: certificate_file and key_file go together, got "
                f"{self.certificate_file} and {self.key_file}"
            )


class Access:
    """The credentials of one client.

    Args:
        address: Where the client connects to.
        tls: None: unencrypted.
        token_file: File that holds the token alone; None: `TOKEN_VARIABLE`, if it is set.

    Raises:
        ConfigError: A file cannot be read, the token is none, or it would leave this machine
            unencrypted.
    """

    def __init__(self, address: str, tls: TlsFiles | None, token_file: Path | None) -> None:
        self._address = address
        self._tls = tls
        self._token_file = token_file
        self._kept: dict[Path, bytes] = {}
        if tls is None and self.metadata() and not _is_this_machine(address):
            raise ConfigError(
                f"a token is not sent to {address} unencrypted, where others could read it on the "
                "way: give tls, or no token (token_file, COALFACE_TOKEN) if the miner asks for none"
            )

    def channel(self, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """A new connection, with the certificates as they are now."""
        tls = self._tls
        if tls is None:
            # A proxy from the environment would see the token.
            direct = [("grpc.enable_http_proxy", 0)] if _is_this_machine(self._address) else []
            return grpc.insecure_channel(self._address, options=[*options, *direct])
        named = [("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name else []
        credentials = grpc.ssl_channel_credentials(
            self._read(tls.ca_file),
            None if tls.key_file is None else self._read(tls.key_file),
            None if tls.certificate_file is None else self._read(tls.certificate_file),
        )
        return grpc.secure_channel(self._address, credentials, options=[*options, *named])

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each request: the token as it is now; nothing if there is none."""
        path = self._token_file
        if path is None:
            place, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE, "").strip()
            if not token:
                return ()
        else:
            place, token = f"token_file {path}", self._read(path).decode("latin-1").strip()
        if not (token and token.isascii() and token.isprintable() and " " not in token):
            raise ConfigError(f"{place} must hold one token: printable ASCII in a single line")
        return (("authorization", f"Bearer {token}"),)

    def _read(self, path: Path) -> bytes:
        try:
            self._kept[path] = path.read_bytes()
        except OSError as exc:
            if path not in self._kept:
                raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
            logger.warning("cannot read %s, its former content stays: %s", path, exc.strerror)
        return self._kept[path]


def _is_this_machine(address: str) -> bool:
    """Whether what is sent to an address stays here; False where that is not plain to see."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        host = address
    host = host.removeprefix("[").removesuffix("]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
