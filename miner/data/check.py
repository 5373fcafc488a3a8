"""Checks every file of a row store, for a person. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from miner.data.row_store import MANIFEST, RowStore, StoreManifest, manifest_text
from miner.errors import DatasetError

__all__ = ["check_store"]


def check_store(root: Path, *, hash_files: bool = True) -> Iterator[str]:
    """One line per problem; none if all is well.

    Args:
        root: The store's folder.
        hash_files: Otherwise its files are there and of the right size, which is all that is known.

    Cost: O(bytes of the store), or its manifest.
    """
    try:
        text = (root / MANIFEST).read_text("utf-8")
        manifest = StoreManifest.model_validate_json(text)
    except (OSError, ValueError) as exc:
        yield f"{root / MANIFEST} cannot be read: {exc}; delete the folder and ingest again"
        return
    before_digests = manifest.model_dump_json(indent=2, exclude={"sha256"}) + "\n"
    if text != (manifest_text(manifest) if manifest.sha256 else before_digests):
        yield f"{root / MANIFEST} is not as it was written; delete the folder and ingest again"
        return
    try:
        store = RowStore.open(root)
        if hash_files:
            yield from store.verify()
    except (DatasetError, OSError) as exc:
        yield f"{exc}"
