"""The folder in which a machine keeps what its processes have read of an object store.

It is a `SnapshotStore`; who changes or maps it is alone with it meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from miner.errors import SnapshotError
from miner.workers.snapshot.local import SnapshotStore

__all__ = ["SnapshotCache"]


class SnapshotCache(SnapshotStore):
    """A store in a folder of this machine, with a lock among processes and threads."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No one else is in such a block: what one has fetched, the next one finds.

        Raises:
            SnapshotError: The folder cannot be made or written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as exc:
            raise SnapshotError(
                f"the cache of snapshots {self.root} cannot be used: {exc}; check "
                "snapshots_cache_dir"
            ) from exc
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove snapshots of other names; maps of them stay readable."""
        for folder in self.root.iterdir():
            if folder.is_dir() and folder.name not in names:
                shutil.rmtree(folder, ignore_errors=True)
