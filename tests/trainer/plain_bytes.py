"""The smallest encoder: of the first bytes of a payload, whatever they are."""

import numpy as np
import pyarrow as pa
import torch
from torch import nn


def build() -> nn.Module:
    return nn.Linear(16, 4)


def preprocess(samples: pa.RecordBatch) -> torch.Tensor:
    contents = samples.column("image").to_pylist()
    rows = np.stack([np.frombuffer(one[:16], np.uint8) for one in contents])
    return torch.as_tensor(rows, dtype=torch.float32) / 255
