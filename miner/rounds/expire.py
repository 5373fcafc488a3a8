"""Rounds leave a log's folder: first noted as expired, then out of the way, then removed."""

from __future__ import annotations

import os
import shutil

from miner.failpoints import reach
from miner.rounds.checked import encode_object
from miner.rounds.durable import replace_file, sync_folder
from miner.rounds.log import RoundLog, id_ranges

__all__ = ["expire_rounds"]


def expire_rounds(log: RoundLog, expired: set[int]) -> None:
    """Note ``expired`` beside what has expired before, and remove their folders.

    The caller holds the log's lock. Killed at any point, a round is there whole or has expired.

    Raises:
        OSError: If the disk refuses.
    """
    known = log.expired_ids()
    if not expired <= known:
        text = encode_object({"ranges": id_ranges(known | expired)})
        replace_file(log.root / "EXPIRED.json", text)
    reach("writer.retain.listed")
    folders = [log.folder(i) for i in sorted(expired & set(log.sealed_ids()))]
    moved = [folder.with_suffix(".expired") for folder in folders]
    for folder, aside in zip(folders, moved, strict=True):
        os.rename(folder, aside)
    reach("writer.retain.renamed")
    sync_folder(log.rounds_dir)
    reach("writer.retain.removing")
    for aside in moved:
        shutil.rmtree(aside, ignore_errors=True)
