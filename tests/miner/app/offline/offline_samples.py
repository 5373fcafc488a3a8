"""Small sets of embeddings for offline rounds, as files in every form, and an oracle by loops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

PLAIN = {"quarantine": {"policy": "off"}}
"""Selection settings in which a small random set keeps all its candidates."""


@dataclass(frozen=True)
class World:
    """Rows of length 1, their identities and ids."""

    embeddings: npt.NDArray[np.float32]
    identities: npt.NDArray[np.str_]
    ids: npt.NDArray[np.str_]

    def save(self, folder: Path) -> dict[str, str]:
        """As .npy files; the arguments that name them."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"embeddings": self.embeddings, "identities": self.identities, "ids": self.ids}
        for name, values in parts.items():
            np.save(folder / f"{name}.npy", values)
        return {name: str(folder / f"{name}.npy") for name in parts}

    def table(self) -> pa.Table:
        rows = pa.FixedSizeListArray.from_arrays(
            pa.array(self.embeddings.ravel()), self.embeddings.shape[1]
        )
        return pa.table({"vector": rows, "person": self.identities.tolist(), "id": self.ids})

    def triplets(self, num_negatives: int) -> set[tuple[int, int, int, int]]:
        """Anchor, hardest positive, nearest row of each of the nearest identities, and its rank."""
        found = set()
        num_rows = len(self.identities)
        for anchor in range(num_rows):
            own, others = [], {}
            for row in range(num_rows):
                similarity = float(self.embeddings[anchor] @ self.embeddings[row])
                name = self.identities[row]
                if name == self.identities[anchor]:
                    if row != anchor:
                        own.append((similarity, row))
                elif name not in others or similarity > others[name][0]:
                    others[name] = (similarity, row)
            if own:
                nearest = sorted(others.values(), reverse=True)[:num_negatives]
                for rank, (_, row) in enumerate(nearest):
                    found.add((anchor, min(own)[1], row, rank))
        return found


def make_world(num_rows: int = 40, num_identities: int = 8, dim: int = 6, seed: int = 0) -> World:
    """Identities of mixed sizes; one of them has a single sample."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(
        np.concatenate(([0], rng.integers(1, num_identities, num_rows - 1))).astype(np.int64)
    )
    embeddings = rng.normal(size=(num_rows, dim)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    names = np.array([f"person-{i}" for i in ids])
    return World(embeddings, names, np.array([f"s{row}" for row in range(num_rows)]))


def save_table(table: pa.Table, path: Path) -> str:
    """As Parquet in small row groups, or as an Arrow file or stream, by the suffix."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=7)
        return str(path)
    opened = pa.ipc.new_stream if path.stem.endswith("stream") else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, opened(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return str(path)


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file and its bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def selection(**changes: Any) -> dict[str, Any]:
    """Settings of `mine` for small sets."""
    return {"selection": {**PLAIN, **changes}}
