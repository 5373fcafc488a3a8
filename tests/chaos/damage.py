"""Damages a file of a sealed round for a while; afterwards it is as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from miner.rounds.log import MANIFEST_FILE

__all__ = ["DAMAGES", "damage"]


def _flip(path: Path, content: bytes, rng: random.Random) -> None:
    place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
    path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])


def _cut_off(path: Path, content: bytes, rng: random.Random) -> None:
    path.write_bytes(content[: rng.randrange(len(content))])


def _remove(path: Path, content: bytes, rng: random.Random) -> None:
    path.unlink()


DAMAGES: dict[str, tuple[str, Callable[[Path, bytes, random.Random], None]]] = {
    "a bit flipped in a chunk": ("chunk-*.arrow", _flip),
    "a chunk truncated": ("chunk-*.arrow", _cut_off),
    "a chunk missing": ("chunk-*.arrow", _remove),
    "a bit flipped in a manifest": (MANIFEST_FILE, _flip),
    "a manifest truncated": (MANIFEST_FILE, _cut_off),
}
"""Kind of damage -> the files that may meet it, and how."""


@contextmanager
def damage(folder: Path, kind: str, rng: random.Random) -> Iterator[Path]:
    """The file that is damaged within the block, and restored from a copy after it."""
    pattern, harm = DAMAGES[kind]
    path = rng.choice(sorted(folder.glob(pattern)))
    content = path.read_bytes()
    harm(path, content, rng)
    try:
        yield path
    finally:
        path.write_bytes(content)
