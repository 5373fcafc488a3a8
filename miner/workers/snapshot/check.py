"""Checks every file of the snapshots that counts, for a person. Reads only.

Chunks that were never made are no problem: a snapshot under way has some.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from miner.workers.snapshot.keys import KEY_FILE, ChunkReceipt, SnapshotKey
from miner.workers.snapshot.local import SnapshotStore
from miner.workers.snapshot.object_check import check_objects
from miner.workers.snapshot.object_store import ObjectSnapshots
from miner.workers.snapshot.place import Snapshots

__all__ = ["check_folder", "check_snapshots"]

_RECEIPT = re.compile(r"chunk-(\d{8})\.json")


def check_snapshots(snapshots: Snapshots, *, hash_rows: bool = True) -> tuple[int, list[str]]:
    """The number of snapshots, and one line per problem of theirs.

    Args:
        snapshots: In a folder or an object store.
        hash_rows: Otherwise the rows are there, which is all that is known.

    Cost: O(bytes of the snapshots), or their receipts.
    """
    if isinstance(snapshots, ObjectSnapshots):
        return check_objects(snapshots, hash_rows=hash_rows)
    root = snapshots.scratch
    folders = sorted(path.parent for path in root.glob(f"*/{KEY_FILE}"))
    return len(folders), [p for f in folders for p in check_folder(f, hash_rows=hash_rows)]


def check_folder(folder: Path, *, hash_rows: bool = True) -> Iterator[str]:
    """One line per problem of one snapshot; none if all is well, or if it is deleted meanwhile.

    Args:
        folder: Of the snapshot.
        hash_rows: Otherwise the rows are there, which is all that is known.

    Cost: O(bytes of the snapshot), or its receipts.
    """
    try:
        problems = list(_problems(folder, hash_rows=hash_rows))
    except OSError as exc:
        problems = [f"{folder} cannot be read: {exc}"]
    if (folder / KEY_FILE).exists():  # the first to go
        yield from problems


def _problems(folder: Path, *, hash_rows: bool) -> Iterator[str]:
    path = folder / KEY_FILE
    try:
        text = path.read_bytes()
        key = SnapshotKey(**json.loads(text))
        is_right = key.digest == folder.name and text == key.encode()
    except (OSError, ValueError, TypeError) as exc:
        yield f"{path} cannot be read: {exc}; delete the folder, it is embedded again"
        return
    if not is_right:
        yield f"{path} is not as it was written; delete the folder, it is embedded again"
        return
    receipts = {
        int(found[1]): path
        for path in sorted(folder.iterdir())
        if (found := _RECEIPT.fullmatch(path.name))
    }
    lost = set(SnapshotStore(folder.parent).missing_chunks(key)) if hash_rows else set()
    for chunk, path in receipts.items():
        problem = _receipt_problem(path, key, chunk)
        if problem is None and chunk in lost:
            begin, end = key.rows_of(chunk)
            data = ", ".join(sorted(file.name for file in folder.glob("rows-*d.f32")))
            problem = f"does not match rows {begin} to {end - 1} of {data}"
        if problem is not None and path.exists():  # or it is being embedded again just now
            yield f"{path} {problem}; the chunk is embedded again when it is needed"


def _receipt_problem(path: Path, key: SnapshotKey, chunk: int) -> str | None:
    try:
        text = path.read_bytes()
        receipt = ChunkReceipt(**json.loads(text))
        size = (path.parent / f"rows-{receipt.dim}d.f32").stat().st_size
        fits = size >= key.rows_of(chunk)[1] * receipt.row_bytes
    except (OSError, ValueError, TypeError, AssertionError) as exc:
        return f"cannot be used: {exc}"
    if text != receipt.encode() or receipt.chunk != chunk:
        return "is not as it was written"
    return None if fits else "is for rows that are not there"
