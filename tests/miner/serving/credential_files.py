"""Certificates and tokens files for tests: a CA of their own, and what it has issued."""

import hashlib
import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import trustme
import yaml

from trainer.feed import TlsFiles

TOKENS = {"read": "token-of-a-reader", "write": "token-of-a-writer", "admin": "token-of-an-admin"}
NAMES = {"read": "reader", "write": "writer", "admin": "operator"}

_numbers = itertools.count()


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, as files."""

    certificate: Path
    key: Path


class Authority:
    """A CA whose files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._ca = trustme.CA()
        self._folder = folder
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, *names: str, expired: bool = False, common_name: str = "") -> Issued:
        now = datetime.now(UTC)
        leaf = self._ca.issue_cert(
            *names,
            common_name=common_name or None,
            not_before=now - timedelta(days=2),
            not_after=now + timedelta(days=-1 if expired else 1),
        )
        number = next(_numbers)
        issued = Issued(self._folder / f"{number}.pem", self._folder / f"{number}.key")
        issued.certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(issued.key)
        return issued

    def server(self) -> Issued:
        return self.issue("localhost", "127.0.0.1")

    def files(self, client: Issued | None = None) -> TlsFiles:
        """What a client is given that trusts this CA."""
        if client is None:
            return TlsFiles(ca_file=self.file)
        return TlsFiles(ca_file=self.file, certificate_file=client.certificate, key_file=client.key)


def token_entry(name: str, role: str, token: str) -> dict[str, str]:
    return {"name": name, "role": role, "sha256": hashlib.sha256(token.encode()).hexdigest()}


def write_tokens(path: Path, *more: dict[str, str]) -> Path:
    """A file with one token of each role, and ``more`` entries."""
    entries = [token_entry(NAMES[role], role, token) for role, token in TOKENS.items()]
    path.write_text(yaml.safe_dump([*entries, *more]))
    return path


def tls_settings(server: Issued, client_ca: Path | None = None) -> dict[str, Any]:
    return {
        "certificate_file": server.certificate,
        "key_file": server.key,
        "client_ca_file": client_ca,
    }


def tls_channel(address: str, ca: Authority, client: Issued | None = None) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        ca.file.read_bytes(),
        client.key.read_bytes() if client else None,
        client.certificate.read_bytes() if client else None,
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(address, credentials, options=options)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def outcome(channel: grpc.Channel, rpc: str, metadata: Any = (), message: bytes = b"") -> Any:
    """Call any rpc with one message; (code, text) of its end, or OK once it answers."""
    call = channel.stream_stream(rpc)(iter([message]), metadata=metadata, timeout=10)
    try:
        next(call, None)
    except grpc.RpcError as exc:
        failed: Any = exc
        return failed.code(), failed.details()
    finally:
        call.cancel()
    return grpc.StatusCode.OK, ""
