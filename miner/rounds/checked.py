"""Small files that hold a number or a JSON object, with a checksum: a changed digit is an error.

    <16 hex digits of sha256> <number>
    {..., "checksum": "<16 hex digits of sha256 of the object without it>"}

Files of earlier versions have no checksum; they are read as before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from typing import Any

__all__ = ["decode_number", "decode_object", "encode_number", "encode_object"]

_NUMBER = re.compile(rb"([0-9a-f]{16}) (\d+)\n")
_PLAIN_NUMBER = re.compile(rb"\s*(\d{1,15})\s*")
_TRAILER = re.compile(rb', "checksum": "([0-9a-f]{16})"\}\n')


def encode_number(value: int) -> bytes:
    """The content of a file that holds ``value``, at least 0.

    Example:
        >>> decode_number(encode_number(17))
        17
    """
    text = str(value).encode()
    return _digest(text) + b" " + text + b"\n"


def decode_number(content: bytes) -> int:
    """The number of a file.

    Raises:
        ValueError: If a single byte is not as written.
    """
    checked = _NUMBER.fullmatch(content)
    if checked is not None and checked[1] == _digest(checked[2]):
        return int(checked[2])
    plain = _PLAIN_NUMBER.fullmatch(content)
    if plain is None:
        raise ValueError(f"it does not match its checksum: {content[:40]!r}")
    return int(plain[1])


def encode_object(values: dict[str, Any]) -> bytes:
    """The content of a file that holds an object, which must not be empty; it is JSON.

    Example:
        >>> decode_object(encode_object({"a": 1}), {"a"})
        {'a': 1}
    """
    body = json.dumps(values).encode()
    return body[:-1] + b', "checksum": "' + _digest(body) + b'"}\n'


def decode_object(content: bytes, keys: Collection[str]) -> dict[str, Any]:
    """The object of a file.

    Args:
        content: Of the file.
        keys: All that the object must have, and no other.

    Raises:
        ValueError: If a single byte is not as written, or keys are others.
    """
    trailer = _TRAILER.search(content)
    if trailer is not None and trailer.end() == len(content):
        body = content[: trailer.start()] + b"}"
        if trailer[1] != _digest(body):
            raise ValueError("it does not match its checksum")
        content = body
    values: Any = json.loads(content)
    if not isinstance(values, dict) or values.keys() != set(keys):
        raise ValueError(f"it must hold {', '.join(keys)} and a checksum")
    return values


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:16].encode()
