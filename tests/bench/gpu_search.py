"""Exact search on a GPU beside the bare matrix product in the same precision.

    python -m tests.bench.gpu_search [--rows 1000000] [--anchors 1000000] [--repeats 3]

The bare product computes every similarity, block by block, and keeps none. A search computes them
too, masks the anchor's identity, and selects. Its fraction of the product's time is the time of the
product over that of the search: 1 if masking and selection were free. FAISS is measured where it
is built for GPUs, torch tiles wherever torch sees one; without a GPU nothing is, and it says so.
Clustered vectors of 128 dimensions with identities of power-law size (``vectors.py``, decay 0.8).
``--device cpu`` is a trial of this script and says nothing of a GPU.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from miner.types import Candidates, IdentityTable
from miner.workers.torch_sweep import torch_sweep
from tests.bench.vectors import clustered

DIM, POWER, DECAY, SEED = 128, 0.7, 0.8, 0
ROWS_PER_IDENTITY = 20
NUM_CANDIDATES = 50
BLOCK, TILE = 8192, 65_536
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SAMPLE = 500
"""Anchors whose candidates are compared with a search in float64."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--anchors", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-mb", type=int, default=16_384)
    parser.add_argument("--device", help="of torch; the first GPU unless given")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    device = options.device or ("cuda:0" if torch.cuda.is_available() else None)
    if device is None:
        print(f"NOT MEASURED: torch {torch.__version__} sees no GPU on this machine.")
        return
    torch.set_float32_matmul_precision("highest")  # products in float32 are without TF32
    made = clustered(options.rows, options.rows // ROWS_PER_IDENTITY, DIM, POWER, SEED, decay=DECAY)
    setting = Setting(made.embeddings_ND, made.identity_ids_N, device, options)
    figures = {
        "device": torch.cuda.get_device_name(device) if device != "cpu" else platform.processor(),
        "torch": torch.__version__,
        "rows": options.rows,
        "anchors": len(setting.anchors_A),
        "num_candidates": NUM_CANDIDATES,
        "searches": list(setting.measured()),
    }
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    if device == "cpu":
        print("A trial on the CPU: these figures say nothing of a GPU.")


class Setting:
    """The set, on the host and on the device, and what is measured on it."""

    def __init__(self, rows_ND, ids_N, device: str, options: argparse.Namespace) -> None:
        self.rows_ND, self.ids_N = rows_ND, ids_N
        self.identities = IdentityTable.from_ids(ids_N)
        rng = np.random.default_rng(SEED)
        self.anchors_A = np.sort(rng.permutation(len(rows_ND))[: options.anchors])
        self.sample = rng.permutation(len(self.anchors_A))[:SAMPLE]
        self.device, self.options = device, options
        self.on_device = torch.from_numpy(rows_ND).to(device)
        self.best_SK = self.exact_sample()

    def measured(self) -> Iterator[dict]:
        for precision in DTYPES:
            yield self.compared("torch tiles", precision, lambda p=precision: self.tiles(p))
        try:
            from miner.index.gpu import available
            from miner.index.gpu_index import GpuIndex
        except ImportError as exc:
            print(f"NOT MEASURED: FAISS on a GPU: {exc}.")
            return
        if not available().num_gpus:
            built = "sees no GPU" if available().is_built else "was built without GPUs"
            print(f"NOT MEASURED: FAISS on a GPU: the FAISS that is installed {built}.")
            return
        for precision in ("float32", "float16"):
            index = self.faiss_index(GpuIndex, precision)
            yield self.compared("FAISS", precision, lambda i=index: self.faiss_candidates(i))
            del index

    def compared(self, name: str, precision: str, search: Callable[[], Candidates]) -> dict:
        """Search and bare product in turn, after one of each that is not counted."""
        search_s, product_s = [], []
        for repeat in range(self.options.repeats + 1):
            seconds, _ = timed(lambda: self.product(precision))
            search_seconds, found = timed(search)
            if repeat:
                product_s.append(seconds)
                search_s.append(search_seconds)
        given_SK = found.similarities_AK[self.sample]
        figures = {
            "search": name,
            "precision": precision,
            "search_s": statistics.median(search_s),
            "product_s": statistics.median(product_s),
            "fraction_of_product": statistics.median(product_s) / statistics.median(search_s),
            "largest_error": float(np.abs(given_SK - self.best_SK).max()),
            "own_identity": int(
                (
                    (self.ids_N[found.row_ids_AK] == self.ids_N[self.anchors_A][:, None])
                    & (found.row_ids_AK >= 0)
                ).sum()
            ),
        }
        print(
            f"{name} {precision}: {figures['search_s']:.2f} s, bare product "
            f"{figures['product_s']:.2f} s: {figures['fraction_of_product']:.3f} of its speed; "
            f"{len(self.anchors_A) / figures['search_s']:,.0f} anchors/s; similarities off by "
            f"{figures['largest_error']:.1e} at most, {figures['own_identity']} of own identity",
            flush=True,
        )
        return figures

    def product(self, precision: str) -> None:
        dtype = DTYPES[precision]
        rows, anchors = self.on_device, torch.from_numpy(self.anchors_A).to(self.device)
        for begin in range(0, len(anchors), BLOCK):
            queries = rows[anchors[begin : begin + BLOCK]].to(dtype)
            for first in range(0, len(rows), TILE):
                queries @ rows[first : first + TILE].to(dtype).T
        synchronize(self.device)

    def tiles(self, precision: str) -> Candidates:
        return torch_sweep(
            self.on_device,
            self.identities,
            self.anchors_A,
            NUM_CANDIDATES,
            [self.device],
            precision=precision,
            memory_mb=self.options.memory_mb,
        )

    def faiss_index(self, index_class, precision: str):
        from miner.index.gpu import GpuSettings

        index = index_class(GpuSettings(is_float16=precision == "float16", devices=(0,)))
        index.build(self.rows_ND)
        return index

    def faiss_candidates(self, index) -> Candidates:
        from miner.index.gpu_candidates import gpu_candidates

        def exact(anchor_ids_A, num_candidates):
            return torch_sweep(
                self.on_device, self.identities, anchor_ids_A, num_candidates, [self.device]
            )

        return gpu_candidates(index, self.identities, self.anchors_A, NUM_CANDIDATES, exact)

    def exact_sample(self) -> np.ndarray:
        """[S, K] similarities of the nearest rows of other identities, products in float64."""
        anchors_S = self.anchors_A[self.sample]
        best = []
        for anchor in anchors_S.tolist():
            scores_N = self.rows_ND @ self.rows_ND[anchor]
            scores_N[self.ids_N == self.ids_N[anchor]] = -np.inf
            near = np.argpartition(scores_N, -2 * NUM_CANDIDATES)[-2 * NUM_CANDIDATES :]
            exact = self.rows_ND[near].astype(np.float64) @ self.rows_ND[anchor]
            exact[np.isneginf(scores_N[near])] = -np.inf
            best.append(-np.sort(-exact)[:NUM_CANDIDATES])
        return np.array(best)


def timed(work: Callable[[], Candidates | None]) -> tuple[float, Candidates | None]:
    begun_s = time.perf_counter()
    result = work()
    return time.perf_counter() - begun_s, result


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
