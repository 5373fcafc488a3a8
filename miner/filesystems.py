"""File systems of `pyarrow.fs`, opened so that a store that is away is an error before long.

It does not know what lies in them. What it says of a URI holds no secret that the URI may hold.
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.fs

__all__ = ["is_uri", "open_filesystem", "reason_of", "shown"]

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 10
MAX_ATTEMPTS = 4
"""Of each request to S3: it fails after some 45 s where a store is silent, after some 5 s where it
refuses to talk. With the SDK's own limits, 3 s and 11 attempts, a silent store took 99 s, and one
that is slow to answer was given up each time."""


def is_uri(place: str) -> bool:
    """Whether a place is given by a URI rather than by a path of this machine."""
    return "://" in place


def open_filesystem(uri: str) -> tuple[Any, str]:
    """The `pyarrow.fs` file system of a URI, and the path in it.

    Credentials, and endpoint and region where the URI names none, come from where pyarrow looks for
    them: of S3 from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``...), the shared
    files of the AWS tools, or the role of the machine.

    Raises:
        pa.ArrowInvalid: The URI is malformed, of an unknown scheme, or has unknown options. Its
            text may quote the URI: see `reason_of`.
        OSError: The region of a bucket, which was not named, cannot be asked for.
    """
    filesystem, path = pa.fs.FileSystem.from_uri(uri)
    if filesystem.type_name == "s3":
        # What it was made with is what it is pickled by; a URI cannot name times or attempts.
        _, (options,) = filesystem.__reduce__()
        options |= {
            "region": filesystem.region,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "request_timeout": REQUEST_TIMEOUT_S,
            "retry_strategy": pa.fs.AwsStandardS3RetryStrategy(max_attempts=MAX_ATTEMPTS),
            "allow_delayed_open": True,  # a small object takes one request, not three
        }
        filesystem = pa.fs.S3FileSystem(**options)
    return filesystem, path


def shown(uri: str) -> str:
    """A place as others may see it: before the host and after the path a URI may hold secrets.

    Example:
        >>> shown("s3://key:secret@bucket/runs?endpoint_override=host")
        's3://bucket/runs'
        >>> shown("/data/what?")
        '/data/what?'
    """
    if not is_uri(uri):
        return uri
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{re.split('[?#]', rest)[0].rpartition('@')[2]}"


def reason_of(error: Exception, uri: str) -> str:
    r"""What a file system says, in one line, without the secrets of its URI or ids of requests.

    Example:
        >>> reason_of(OSError("denied\n (Request ID: 7)"), "s3://key:secret@bucket/runs")
        'denied'
    """
    text = " ".join(str(error).split()).replace(uri, shown(uri))
    return re.sub(r" \(Request ID: [^)]*\)", "", text)
