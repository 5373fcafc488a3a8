"""Checks the snapshots of an object store, for a person. Reads only, and not through the cache.

Chunks that were never made are no problem: a snapshot under way has some.
"""

from __future__ import annotations

import re

from miner.workers.snapshot.keys import KEY_FILE, ChunkReceipt, SnapshotKey
from miner.workers.snapshot.object_store import ObjectSnapshots, rows_path
from miner.workers.snapshot.objects import in_parallel

__all__ = ["check_objects"]

_RECEIPT = re.compile(r"chunk-(\d{8})\.json")


def check_objects(snapshots: ObjectSnapshots, *, hash_rows: bool) -> tuple[int, list[str]]:
    """The number of snapshots, and one line per problem; what is deleted meanwhile is none.

    Args:
        snapshots: The store.
        hash_rows: Otherwise rows are only looked up.

    Raises:
        SnapshotError: The store is away or refuses.
    """
    problems, number = [], 0
    for name in snapshots.names():
        content = snapshots.objects.get(f"{name}/{KEY_FILE}")
        if content is None:  # deleted, or never used
            continue
        number += 1
        place = snapshots.objects.shown(name)
        key = SnapshotKey.decode(content)
        if key is None or key.digest != name or content != key.encode():
            problems.append(
                f"{place}/{KEY_FILE} is not as it was written; delete the folder, it is embedded "
                "again"
            )
            continue
        found = _problems(snapshots, key, hash_rows=hash_rows)
        if snapshots.objects.get(f"{name}/{KEY_FILE}") is not None:  # the first to go
            problems += [f"{place}/{problem}" for problem in found]
    return number, problems


def _problems(snapshots: ObjectSnapshots, key: SnapshotKey, *, hash_rows: bool) -> list[str]:
    sizes = snapshots.objects.sizes(key.digest)

    def problem(name: str) -> str | None:
        chunk = int(name[6:14])
        content = snapshots.objects.get(f"{key.digest}/{name}")
        if content is None:
            return None
        is_chunk = chunk < key.num_chunks
        receipt = ChunkReceipt.decode(content, key, chunk) if is_chunk else None
        if receipt is None or content != receipt.encode():
            return "is not as it was written"
        rows = rows_path(key, receipt)
        if sizes.get(rows.rpartition("/")[2]) != receipt.num_bytes:
            # Replaced since they were listed, maybe.
            return None if snapshots.receipt(key, chunk) != receipt else "is for rows not there"
        if hash_rows and snapshots.fetch(key, receipt) is None:
            begin, end = key.rows_of(chunk)
            return f"does not match rows {begin} to {end - 1} of {rows.rpartition('/')[2]}"
        return None

    names = sorted(name for name in sizes if _RECEIPT.fullmatch(name))
    found = zip(names, in_parallel(problem, names), strict=True)
    return [
        f"{name} {what}; the chunk is embedded again when it is needed"
        for name, what in found
        if what
    ]
