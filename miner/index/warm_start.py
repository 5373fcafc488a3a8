"""What a search leaves to the next one over the same rows: trained lists, and what it found.

    absent -> kept -> taken over -> kept anew ...

It is a cache: one that is missing, damaged or of other rows costs time, never a round. Shape
legend: N = rows, D = dimensions, A = anchors, K = candidates, P = axes, L = lists, C = coarse
clusters, W = neighbours kept.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from miner.errors import SearchError
from miner.index.inverted_lists import Centroids
from miner.index.projection import Projection
from miner.index.rescoring import NONE

__all__ = ["WarmFile", "WarmStart"]

logger = logging.getLogger(__name__)

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

CHUNK = 2**16
"""Anchors whose rows are put down at a time: no second copy of all candidates."""
KEPT = 64
"""At most so many nearest rows are kept of each row, 4 bytes each."""
VERSION = "1"


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Taken over from one search to the next.

    Attributes:
        centroids: Of the lists, as they were trained.
        num_probes: That reached the target when they were trained.
        neighbours_NW: [N, W] uint32 nearest rows of other identities found of each row, best first;
            NONE where there is none, or the row was no anchor yet.
    """

    centroids: Centroids
    num_probes: int
    neighbours_NW: U32

    @classmethod
    def after(  # noqa: PLR0913, PLR0917 - what it was before, and what was found
        cls,
        before: WarmStart | None,
        centroids: Centroids,
        num_probes: int,
        anchor_ids_A: I64,
        row_ids_AK: I64,
        num_rows: int,
    ) -> WarmStart:
        """What a search leaves: rows that were no anchors keep what is known of them."""
        width = min(KEPT, row_ids_AK.shape[1])
        neighbours_NW = np.full((num_rows, width), NONE)
        if before is not None:
            common = min(width, before.neighbours_NW.shape[1])
            neighbours_NW[:, :common] = before.neighbours_NW[:, :common]
        for begin in range(0, len(anchor_ids_A), CHUNK):
            part = slice(begin, begin + CHUNK)
            neighbours_NW[anchor_ids_A[part]] = row_ids_AK[part, :width].astype(np.uint32)
        return cls(centroids, num_probes, neighbours_NW)

    def require_fit(self, num_rows: int, dim: int) -> None:
        """Accepts what a search over as many rows of as many dimensions has left.

        Raises:
            SearchError: It is of others.
        """
        rows, of_dim = len(self.neighbours_NW), self.centroids.projection.dim
        if (rows, of_dim) != (num_rows, dim):
            raise SearchError(
                f"what an earlier search has left is of {rows} rows of {of_dim} dimensions, not of "
                f"{num_rows} of {dim}: start without it"
            )
        outside = (self.neighbours_NW >= num_rows) & (self.neighbours_NW != NONE)
        if outside.any():
            raise SearchError(
                f"what an earlier search has left names {np.count_nonzero(outside)} rows beyond "
                f"the {num_rows} that there are: start without it"
            )


@dataclass(frozen=True, slots=True)
class WarmFile:
    """Where it is kept between searches.

    Attributes:
        path: Of the file.
        rows: What the rows are, such as the dataset's fingerprint; of another one nothing is taken.
    """

    path: Path
    rows: str

    def save(self, warm: WarmStart) -> None:
        """Replace what is there; if the disk refuses, that is logged."""
        centroids = warm.centroids
        tensors = {
            "coarse": centroids.coarse_CP,
            "fine": centroids.fine_LP,
            "neighbours": warm.neighbours_NW,
        }
        axes_DP = centroids.projection.axes_DP
        if axes_DP is not None:
            tensors["axes"] = axes_DP
        metadata = {
            "version": VERSION,
            "rows": self.rows,
            "dim": str(centroids.projection.dim),
            "num_probes": str(warm.num_probes),
        }
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, partial, metadata)
            partial.replace(self.path)
        except (OSError, SafetensorError) as exc:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            logger.warning("the next search starts cold: %s cannot be written: %s", self.path, exc)

    def load(self, num_rows: int, dim: int) -> WarmStart | None:
        """What was kept of these rows; None if there is none, or it cannot be used."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "numpy") as file:
                metadata = file.metadata() or {}
                if (metadata.get("version"), metadata.get("rows")) != (VERSION, self.rows):
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            warm = _checked(tensors, metadata, num_rows, dim)
        except (OSError, SafetensorError, KeyError, ValueError, IndexError, TypeError) as exc:
            logger.warning("the search starts cold: %s cannot be used: %s", self.path, exc)
            return None
        return warm


def _checked(
    tensors: dict[str, npt.NDArray[Any]], metadata: dict[str, str], num_rows: int, dim: int
) -> WarmStart:
    """Raises KeyError or ValueError of what does not fit."""
    axes_DP, coarse_CP, fine_LP = tensors.get("axes"), tensors["coarse"], tensors["fine"]
    neighbours_NW = tensors["neighbours"]
    num_axes = dim if axes_DP is None else axes_DP.shape[-1]
    fits = (
        min(array.ndim for array in tensors.values()) == 2
        and min(len(coarse_CP), len(fine_LP)) > 0
        and metadata["dim"] == str(dim)
        and (axes_DP is None or axes_DP.shape == (dim, num_axes))
        and coarse_CP.shape == (len(coarse_CP), num_axes)
        and fine_LP.shape == (len(fine_LP), num_axes)
        and neighbours_NW.shape == (num_rows, neighbours_NW.shape[-1])
        and neighbours_NW.dtype == np.uint32
        and all(
            array.dtype == np.float32 and np.isfinite(array).all()
            for array in (axes_DP, coarse_CP, fine_LP)
            if array is not None
        )
        and bool(((neighbours_NW < num_rows) | (neighbours_NW == NONE)).all())
    )
    if not fits:
        raise ValueError("arrays of the wrong shape or type, or rows that are not there")
    centroids = Centroids(Projection(axes_DP, dim), coarse_CP, fine_LP)
    return WarmStart(centroids, int(metadata["num_probes"]), neighbours_NW)
