"""Reads announced weights from where announcers may put them, and nowhere else.

It knows nothing of what the bytes mean. Checked and loaded are the same bytes: a file that changes
after the check does no harm.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from miner.embedding.config import EncoderConfig
from miner.errors import WeightsRefusedError
from miner.filesystems import is_uri, open_filesystem, reason_of, shown

__all__ = ["fetch_weights"]

_WAY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW


def fetch_weights(uri: str, sha256: str, config: EncoderConfig) -> bytes:
    """The bytes at ``uri``, which lie under an allowed prefix and have the announced digest.

    Args:
        uri: An absolute path, a ``file://`` URI, or a URI of any file system of `pyarrow.fs`.
        sha256: The announced digest, hex.
        config: Its ``weights_prefixes`` are the allowed folders and URI prefixes.

    Raises:
        WeightsRefusedError: The place is not allowed (links are followed before it is judged), it
            cannot be read or is above ``max_weights_bytes``, or the digest is another one.
    """
    blob = _read_local(uri, config) if _is_local(uri) else _read_remote(uri, config)
    actual = hashlib.sha256(blob).hexdigest()
    if actual != sha256.lower():
        raise WeightsRefusedError(
            f"weights {shown(uri)} ({len(blob)} bytes) have sha256 {actual}, announced was "
            f"{sha256!r}; announce a file only when it is written, and never write to it again",
            kind="digest",
        )
    return blob


def _is_local(uri: str) -> bool:
    return uri.startswith("file:") or not is_uri(uri)


def _local_path(uri: str) -> str:
    if not uri.startswith("file:"):
        return uri
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise WeightsRefusedError(
            f"weights {uri}: the host {parts.netloc!r} is not this one", kind="location"
        )
    return unquote(parts.path)


def _read_local(uri: str, config: EncoderConfig) -> bytes:
    path = _local_path(uri)
    if not os.path.isabs(path) or "\0" in path:
        raise WeightsRefusedError(
            f"weights {uri!r}: a path must be absolute, or a file:// URI", kind="location"
        )
    resolved = Path(os.path.realpath(path))
    allowed = [prefix for prefix in config.weights_prefixes if _is_local(prefix)]
    if not any(resolved.is_relative_to(os.path.realpath(_local_path(p))) for p in allowed):
        leads = f" (it leads to {resolved})" if str(resolved) != path else ""
        raise _outside(f"{uri}{leads}", config)
    try:
        with open(_open_without_links(resolved), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise WeightsRefusedError(
                    f"weights {uri} are not a regular file", kind="unreadable"
                )
            _require_size(uri, found.st_size, config)
            return file.read(found.st_size)
    except OSError as exc:
        raise WeightsRefusedError(
            f"weights {uri} cannot be read: {exc.strerror}", kind="unreadable"
        ) from exc


def _open_without_links(resolved: Path) -> int:
    """A descriptor of a file; neither by a link put on the way meanwhile, nor waiting for a pipe.

    Raises:
        OSError: There is no such file, or it is reached over a link.
    """
    way = os.open(resolved.anchor, _WAY)
    try:
        for part in resolved.parts[1:-1]:
            further = os.open(part, _WAY, dir_fd=way)
            os.close(way)
            way = further
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(resolved.name, flags, dir_fd=way)
    finally:
        os.close(way)


def _read_remote(uri: str, config: EncoderConfig) -> bytes:
    # No escapes and no options: `?endpoint_override=` would turn an allowed bucket into any host.
    if set(uri) & set("?#%\\\0") or {".", ".."} & set(uri.split("/")):
        raise WeightsRefusedError(
            f"weights {shown(uri)!r}: a URI may hold none of ? # % \\ and no ./ ../",
            kind="location",
        )
    # A prefix may hold options and credentials; they are the operator's, and go with what is read.
    scheme, _, place = uri.partition("://")
    for prefix in config.weights_prefixes:
        allowed_scheme, _, rest = prefix.partition("://")
        allowed, mark, options = rest.partition("?")
        credentials, at, allowed = allowed.rpartition("@")
        is_below = place.startswith(allowed.rstrip("/") + "/")
        if not _is_local(prefix) and scheme == allowed_scheme and is_below:
            system, path = _file_system(f"{scheme}://{credentials}{at}{place}{mark}{options}")
            try:
                with system.open_input_file(path) as file:
                    _require_size(uri, file.size(), config)
                    return bytes(file.read())
            except (OSError, pa.ArrowException) as exc:
                raise WeightsRefusedError(
                    f"weights {shown(uri)} cannot be read: {reason_of(exc, uri)}; the "
                    "options of their store are those in encoder.weights_prefixes",
                    kind="unreadable",
                ) from exc
    raise _outside(shown(uri), config)


def _file_system(uri: str) -> tuple[Any, str]:
    try:
        system, path = open_filesystem(uri)
    except (OSError, pa.ArrowException) as exc:  # its text quotes the URI
        raise WeightsRefusedError(
            f"weights {shown(uri)} cannot be read: their file system cannot be opened with what "
            f"encoder.weights_prefixes says ({type(exc).__name__})",
            kind="unreadable",
        ) from None
    return system, path


def _require_size(uri: str, num_bytes: int, config: EncoderConfig) -> None:
    if num_bytes > config.max_weights_bytes:
        raise WeightsRefusedError(
            f"weights {shown(uri)} are {num_bytes} bytes, above the {config.max_weights_bytes} "
            "that encoder.max_weights_bytes allows",
            kind="unreadable",
        )


def _outside(place: str, config: EncoderConfig) -> WeightsRefusedError:
    allowed = ", ".join(map(shown, config.weights_prefixes)) or "nowhere"
    return WeightsRefusedError(
        f"weights {place} are outside what encoder.weights_prefixes allows ({allowed}); write them "
        "there, or let the miner's operator add the folder",
        kind="location",
    )
