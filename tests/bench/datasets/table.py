"""Writes a small image set in the layout of the glyph set, so that every tool here takes it.

Identities and samples are drawn by a hash of their names: the same sources give the same file,
whatever their order, and a set with a lower cap is a part of the set with a higher one.
"""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TEST_FRACTION = 0.3
SEED = 20_260_101


@dataclass(frozen=True, slots=True)
class Sample:
    """One row: an image (32 x 32, grey) of an identity, and what it was made from."""

    identity: str
    source: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Caps:
    """How much of the sources is taken."""

    train_identities: int
    test_identities: int
    max_samples: int = 1 << 30
    min_samples: int = 2


def rank(name: str) -> int:
    """A number that depends on the name alone, for draws without a generator."""
    return int.from_bytes(hashlib.sha256(f"{SEED}:{name}".encode()).digest()[:8], "big")


def split_of(identity: str) -> str:
    return "test" if rank(f"split/{identity}") < TEST_FRACTION * 2**64 else "train"


def to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_samples(samples: Iterable[Sample], caps: Caps, path: Path) -> str:
    """Write identities and samples up to the caps; says in a line what was written."""
    samples_of: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        samples_of[sample.identity].append(sample)
    kept: list[Sample] = []
    counts = []
    for split, most in (("train", caps.train_identities), ("test", caps.test_identities)):
        names = [
            name
            for name, own in samples_of.items()
            if split_of(name) == split and len(own) >= caps.min_samples
        ]
        names = sorted(names, key=rank)[:most]
        before = len(kept)
        for name in sorted(names):
            own = sorted(samples_of[name], key=lambda s: rank(f"{s.identity}/{s.source}"))
            kept += own[: caps.max_samples]
        counts.append(f"{split}: {len(kept) - before} rows of {len(names)} identities")
    table = pa.table(
        {
            "sample_id": [f"{s.identity}/{s.source}" for s in kept],
            "identity": [s.identity for s in kept],
            "image": pa.array([s.png for s in kept], pa.binary()),
            "source": [s.source for s in kept],
            "split": [split_of(s.identity) for s in kept],
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return f"{path}: {'; '.join(counts)}"
