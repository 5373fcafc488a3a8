"""Objects in a store, S3 or one like it: what an archive needs of one, and no more.

It alone knows the store's client, and knows neither rounds nor runs. pyarrow.fs opens the same
stores, and cannot put an object only where there is none, which is what everything here stands on.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from miner.errors import ConfigError, DiskError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["FIELD", "Objects"]

FIELD = "rounds.archive_uri"
SCHEMES = ("s3", "gs", "az", "file")
TRANSFER_S = 60.0
"""For chunks, of some 500 KB. A try may be followed by others for as long again."""
_CONNECT_S = 3.0
_GETS_AT_ONCE = 16
_KEYS_A_PAGE = 1000
_CODE = re.compile(r"<Code>(\w+)</Code>")


class Objects:
    """The objects below one URI; safe among threads, and not over a fork.

    Credentials, endpoint and region come from the environment (`AWS_ACCESS_KEY_ID`,
    `AWS_ENDPOINT_URL` and so on), and are in no message.

    Attributes:
        uri: As it was given.
    """

    def __init__(self, uri: str, timeout_s: float = TRANSFER_S) -> None:
        """Prepare for requests, each bounded by ``timeout_s``; asks the store for nothing.

        Raises:
            ConfigError: The URI names no store, or the client is not installed.
        """
        self.uri = uri.rstrip("/")
        _check_uri(uri)
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError as exc:
            raise ConfigError(
                f"{FIELD}: {uri} needs a package that is not installed: pip install "
                "'coalface[archive]', or obstore alone"
            ) from exc
        try:
            if uri.startswith("file:"):
                Path(urlsplit(uri).path).mkdir(parents=True, exist_ok=True)
            self._store: ObjectStore = from_url(
                uri,
                client_options={
                    "timeout": f"{timeout_s:g}s",
                    "connect_timeout": f"{min(_CONNECT_S, timeout_s):g}s",
                    "allow_http": True,  # only where the endpoint in the environment says so
                },
                retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=timeout_s)},
            )
        except (BaseError, OSError, ValueError) as exc:
            raise ConfigError(f"{FIELD}: {uri} cannot be used: {_told(exc)}") from exc

    def put(self, key: str, content: bytes) -> None:
        """Make or replace an object.

        Raises:
            DiskError: The store is away, too slow or refuses; the object may be there or not.
        """
        import obstore

        with self._refusals("put", key):
            obstore.put(self._store, key, content, use_multipart=False)

    def put_new(self, key: str, content: bytes) -> bytes:
        """Make an object, unless there is one; give the content that counts, which never changes.

        Of all who ever put a key by this method one wins, and all others are given its content. A
        try that seemed to fail may have won: whoever repeats it is then given its own content.

        Raises:
            DiskError: As `put`.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._refusals("put", key):
            try:
                obstore.put(self._store, key, content, mode="create", use_multipart=False)
                return content
            except AlreadyExistsError:
                pass
        found = self.get(key)
        if found is None:
            raise DiskError(f"{self.uri}/{key} is refused as being there, and is not: try again")
        return found

    def get(self, key: str) -> bytes | None:
        """The content of an object; None if there is none.

        Raises:
            DiskError: The store is away, too slow or refuses.
        """
        import obstore

        with self._refusals("read", key):
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def get_all(self, keys: Sequence[str]) -> Iterator[bytes | None]:
        """As `get` for each, in order, several at once."""
        with ThreadPoolExecutor(_GETS_AT_ONCE) as threads:
            yield from threads.map(self.get, keys)

    def keys(self, folder: str, after: str | None = None) -> list[str]:
        """The objects in a folder and below, ascending; only those behind the key ``after``.

        Raises:
            DiskError: As `get`.
        """
        import obstore

        with self._refusals("listed", folder):
            pages = obstore.list(self._store, folder, offset=after, chunk_size=_KEYS_A_PAGE)
            return sorted(meta["path"] for page in pages for meta in page)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects, as far as they are there.

        Raises:
            DiskError: As `get`; some may be gone.
        """
        import obstore

        for key in keys:
            with self._refusals("removed", key), suppress(FileNotFoundError):
                obstore.delete(self._store, key)

    def require_put_if_absent(self) -> None:
        """Try whether the store answers, and refuses to put an object where there is one.

        Raises:
            ConfigError: It does not; names the field.
        """
        key = f"probe/{uuid.uuid4().hex}"
        try:
            first = self.put_new(key, b"first")
            second = self.put_new(key, b"second")
            kept = self.get(key)
            self.remove([key])
        except DiskError as exc:
            raise ConfigError(f"{FIELD}: {self.uri} cannot be used: {exc}") from exc
        if (first, second, kept) != (b"first",) * 3:
            raise ConfigError(
                f"{FIELD}: {self.uri} puts an object over another although it was asked not to "
                "(If-None-Match), so that two miners could seal the same round: take a store that "
                "heeds it, or none"
            )

    @contextmanager
    def _refusals(self, done: str, key: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as exc:
            raise DiskError(f"{self.uri}/{key} cannot be {done}: {_told(exc)}") from exc


def _check_uri(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError(
            f"{FIELD}: it must be bucket and folder alone: credentials, endpoint and region come "
            "from the environment, as AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and AWS_REGION do"
        )
    if parts.scheme not in SCHEMES or not (parts.netloc or parts.path.strip("/")):
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ConfigError(
            f"{FIELD}: {uri!r} is no store: it must be one of {known} with a bucket and a folder"
        )


def _told(error: Exception) -> str:
    """What went wrong in a line; answers of stores may quote keys and signatures."""
    text: Any = str(error).partition("\n\nDebug source")[0]
    code = _CODE.search(text)
    text = " ".join(text.partition("<")[0].split()).rstrip(": ")
    return f"{text} ({code[1]})" if code else text
