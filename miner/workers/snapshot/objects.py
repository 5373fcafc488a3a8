"""Objects below one URI, as the snapshots need them. It knows nothing of what they hold.

Any file system of `pyarrow.fs` will do on which an object appears whole, as on S3: a put that is
cut off leaves what was there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs

from miner.errors import ConfigError, SnapshotError
from miner.filesystems import open_filesystem, reason_of, shown

__all__ = ["Objects", "in_parallel"]

log = logging.getLogger(__name__)

NUM_THREADS = 8
"""Requests at a time: most of each is waiting. Each may hold a chunk in memory."""

T = TypeVar("T")
R = TypeVar("R")


class Objects:
    """Reads, puts, lists and removes objects by their path below the URI. Thread-safe."""

    def __init__(self, uri: str) -> None:
        """Open the file system.

        Raises:
            ConfigError: There is none for this URI.
        """
        self.uri = uri
        self._lock = threading.Lock()
        self._opened: tuple[Any, str] | None = None
        with suppress(SnapshotError):  # away for now: it is opened at the first use
            self._open()

    def shown(self, path: str = "") -> str:
        """Where an object lies, without secrets."""
        return "/".join(part for part in (shown(self.uri).rstrip("/"), path) if part)

    def get(self, path: str, num_bytes: int | None = None) -> bytes | None:
        """The content of an object; None if it is not there, or not of ``num_bytes``.

        Raises:
            SnapshotError: The store is away or refuses.
        """

        def read(system: Any, full: str) -> bytes | None:
            with system.open_input_file(full) as file:
                if num_bytes is not None and file.size() != num_bytes:
                    return None
                return bytes(file.read())

        try:
            return self._do("read", path, read)
        except FileNotFoundError:
            return None

    def put(self, path: str, data: bytes | memoryview) -> None:
        """Make an object, or replace it as a whole; durable on return.

        Raises:
            SnapshotError: The store is away or refuses; what was there before is still there.
        """

        def write(system: Any, full: str) -> None:
            with system.open_output_stream(full) as stream:
                stream.write(data)

        try:
            self._do("written", path, write)
        except FileNotFoundError as exc:
            raise self._refusal("written", path, exc) from exc

    def sizes(self, folder: str) -> dict[str, int]:
        """The objects right below a folder: name and bytes. Folders there have -1 bytes.

        Raises:
            SnapshotError: The store is away or refuses.
        """

        def listed(system: Any, full: str) -> dict[str, int]:
            selector = pa.fs.FileSelector(full, allow_not_found=True)
            return {
                info.base_name: info.size if info.is_file else -1
                for info in system.get_file_info(selector)
            }

        try:
            return self._do("listed", folder, listed)
        except FileNotFoundError:
            return {}

    def changed(self, paths: Sequence[str]) -> list[datetime]:
        """When each object was put last, in UTC; those that are not there never were.

        Raises:
            SnapshotError: The store is away or refuses.
        """
        never = datetime.fromtimestamp(0, UTC)

        def looked_up(system: Any, full: str) -> list[datetime]:
            infos = system.get_file_info([f"{full}/{path}" for path in paths])
            return [info.mtime or never if info.is_file else never for info in infos]

        return self._do("listed", "", looked_up)

    def remove(self, path: str, *, is_folder: bool = False) -> None:
        """Remove what nobody needs; what the store does not remove is only logged."""

        def removed(system: Any, full: str) -> None:
            (system.delete_dir if is_folder else system.delete_file)(full)

        with suppress(FileNotFoundError):
            try:
                self._do("removed", path, removed)
            except SnapshotError as exc:
                log.warning("what is not needed any more stays: %s", exc)

    def _do(self, what: str, path: str, act: Callable[[Any, str], T]) -> T:
        system, root = self._open()
        try:
            return act(system, f"{root}/{path}".rstrip("/"))
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as exc:
            raise self._refusal(what, path, exc) from exc

    def _refusal(self, what: str, path: str, exc: Exception) -> SnapshotError:
        return SnapshotError(
            f"{self.shown(path)} cannot be {what}: {reason_of(exc, self.uri)}; check snapshots_dir "
            "and its credentials, what is written is kept"
        )

    def _open(self) -> tuple[Any, str]:
        with self._lock:
            if self._opened is None:
                try:
                    system, root = open_filesystem(self.uri)
                except pa.ArrowException as exc:
                    raise ConfigError(
                        f"snapshots_dir {self.shown()} cannot be opened: "
                        f"{reason_of(exc, self.uri)}; give a path, or a URI that pyarrow.fs knows, "
                        "such as s3://bucket/folder"
                    ) from None  # its text quotes the URI
                except OSError as exc:
                    raise SnapshotError(
                        f"snapshots_dir {self.shown()} cannot be reached: "
                        f"{reason_of(exc, self.uri)}"
                    ) from exc
                self._opened = system, root.rstrip("/")
            return self._opened


def in_parallel(act: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What ``act`` makes of each item, in their order.

    Raises:
        Exception: The first that ``act`` raises; of the others none begins then.
    """
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        futures = [threads.submit(act, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
