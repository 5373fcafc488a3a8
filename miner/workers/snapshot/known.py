"""Rows of one snapshot that another has: of equal files of the dataset.

Whether another snapshot makes the same rows is decided before; it reads and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from miner.workers.snapshot.keys import SnapshotKey

__all__ = ["DataFile", "KnownRows", "decode_files", "encode_files", "match_files"]


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of the dataset: its kept rows' number, and the digest of their payload."""

    num_rows: int
    payload_sha256: str


@dataclass(frozen=True, slots=True)
class KnownRows:
    """Rows ``[begin, end)`` whose embeddings another snapshot has, from its row ``first`` on."""

    begin: int
    end: int
    key: SnapshotKey
    first: int


def encode_files(files: Sequence[DataFile]) -> bytes:
    """As `FILES_FILE` holds them."""
    return json.dumps([asdict(file) for file in files]).encode()


def decode_files(content: bytes) -> list[DataFile]:
    """The files of a snapshot, in row order; none if it is something else."""
    try:
        return [DataFile(**entry) for entry in json.loads(content)]
    except (ValueError, TypeError):
        return []


def match_files(
    files: Sequence[DataFile], others: Iterable[tuple[SnapshotKey, Sequence[DataFile]]]
) -> list[KnownRows]:
    """The rows of ``files`` that others have; of several the last one.

    Returns:
        Ascending, without overlap.
    """
    there: dict[DataFile, tuple[SnapshotKey, int]] = {}
    for key, other_files in others:
        begin = 0
        for file in other_files:
            there[file] = key, begin
            begin += file.num_rows
    known, begin = [], 0
    for file in files:
        if file in there:
            known.append(KnownRows(begin, begin + file.num_rows, *there[file]))
        begin += file.num_rows
    return known
