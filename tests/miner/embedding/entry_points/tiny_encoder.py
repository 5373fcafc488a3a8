"""A tiny encoder of float vectors, as a user would write one; it can be told to misbehave.

Where $TINY_TRIGGERS names a folder, a file in it named by a row id says what preprocessing that row
does: raise, kill (the process), kill-once, hang-once, nan, hold (until the file is gone). Each call
appends "first last pid" to `calls`: row ids, and the process.
"""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

INPUTS = 7


def build(dim: int = 5, hidden: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, hidden), nn.Tanh(), nn.Linear(hidden, dim))


def preprocess(batch: pa.RecordBatch) -> torch.Tensor:
    vectors = [np.frombuffer(blob, np.float32) for blob in batch.column("vector").to_pylist()]
    inputs = np.stack(vectors)
    folder = os.environ.get("TINY_TRIGGERS")
    if folder:
        row_ids = batch.column("row_id").to_pylist()
        with (Path(folder) / "calls").open("a") as calls:
            calls.write(f"{row_ids[0]} {row_ids[-1]} {os.getpid()}\n")
        for position, row_id in enumerate(row_ids):
            trigger = Path(folder) / str(row_id)
            if trigger.exists():
                _misbehave(trigger, inputs[position])
    return torch.from_numpy(inputs)


def _misbehave(trigger: Path, inputs: np.ndarray) -> None:
    action = trigger.read_text()
    if action == "raise":
        raise ValueError("the sample is damaged")
    if action == "nan":
        inputs[:] = np.nan
        return
    if action == "hold":
        while trigger.exists():
            time.sleep(0.02)
        return
    if action in {"kill-once", "hang-once"}:
        trigger.unlink()
    if action == "hang-once":
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)


def build_raising() -> nn.Module:
    raise RuntimeError("no such backbone")


def build_nothing() -> None:
    return None


class Misshapen(nn.Module):
    """Outputs of a wrong form: a scalar per row."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.sum(dim=1)


class NoBatches(nn.Module):
    """Fails on two rows or more, as a device does that is short of memory."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) > 1:
            raise RuntimeError("out of memory")
        return inputs


class WideBatches(nn.Module):
    """As many dimensions as rows."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(inputs), len(inputs))


class Same(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


def preprocess_short(batch: pa.RecordBatch) -> torch.Tensor:
    return preprocess(batch)[1:]


def preprocess_list(batch: pa.RecordBatch) -> list[float]:
    return [0.0] * batch.num_rows


not_callable = 3
