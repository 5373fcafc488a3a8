"""The user's encoder, held to its contract: batches in, L2-normalised float32 rows out.

It knows neither weights files, nor snapshots, nor Ray. Shape legend: B = rows of the batch,
D = dimensions of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from miner.embedding.config import EncoderConfig
from miner.embedding.entry_points import load_entry_point
from miner.errors import EncoderError, NonFiniteError

__all__ = ["BatchFailedError", "Encoder", "build_module", "load_encoder"]


class BatchFailedError(EncoderError):
    """The user's code raised on a batch: perhaps one of its samples is to blame."""


class Encoder:
    """A module in evaluation mode with its preprocessing, on one device."""

    def __init__(
        self,
        module: nn.Module,
        preprocess: Callable[[pa.RecordBatch], torch.Tensor],
        device: torch.device,
    ) -> None:
        self.module = module.to(device).eval()
        self.device = device
        self._preprocess = preprocess
        self._dim: int | None = None

    @property
    def dim(self) -> int | None:
        """Dimensions of the embedding; None until a first batch has been embedded."""
        return self._dim

    def embed(self, batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
        """Embed one batch, whose column ``row_id`` names its rows in errors.

        Returns:
            [B, D] float32, each row of length 1.

        Raises:
            BatchFailedError: The preprocessing or the module raised.
            EncoderError: What came out of them has the wrong form.
            NonFiniteError: Rows hold NaN or infinity, or are all zero; names the first row ids.
        """
        return self.embed_decoded(batch, self.decode(batch))

    def decode(self, batch: pa.RecordBatch) -> torch.Tensor:
        """The module's input for a batch, on the CPU: what the preprocessing gives.

        Raises:
            BatchFailedError, EncoderError: As `embed`.
        """
        try:
            inputs = self._preprocess(batch)
        except Exception as exc:
            raise BatchFailedError(f"preprocess raised {_brief(exc)}") from exc
        if not isinstance(inputs, torch.Tensor) or not inputs.ndim or len(inputs) != batch.num_rows:
            raise EncoderError(
                f"preprocess gave {_form(inputs)} for a batch of {batch.num_rows} rows; it must "
                "give a tensor whose first dimension is the rows"
            )
        return inputs

    def embed_decoded(self, batch: pa.RecordBatch, inputs: torch.Tensor) -> npt.NDArray[np.float32]:
        """As `embed`, from what `decode` gave for the batch."""
        try:
            with torch.inference_mode():
                outputs = self.module(inputs.to(self.device))
        except Exception as exc:
            raise BatchFailedError(f"the encoder raised {_brief(exc)}") from exc
        return self._normalise(self._check(outputs, batch.num_rows), batch)

    def _check(self, outputs: object, num_rows: int) -> npt.NDArray[np.float32]:
        well_formed = isinstance(outputs, torch.Tensor) and outputs.ndim == 2 and outputs.numel()
        if not well_formed or len(outputs) != num_rows or not outputs.is_floating_point():  # type: ignore[arg-type,attr-defined]
            raise EncoderError(
                f"the encoder gave {_form(outputs)} for a batch of {num_rows} rows; it must give "
                f"a floating-point tensor [{num_rows}, dimensions]"
            )
        assert isinstance(outputs, torch.Tensor)
        if self._dim not in (None, outputs.shape[1]):
            raise EncoderError(
                f"the encoder gave {outputs.shape[1]} dimensions after {self._dim} before; "
                "the number must not depend on the batch"
            )
        self._dim = outputs.shape[1]
        raw_BD: npt.NDArray[np.float32] = outputs.float().cpu().numpy()
        return raw_BD

    @staticmethod
    def _normalise(
        raw_BD: npt.NDArray[np.float32], batch: pa.RecordBatch
    ) -> npt.NDArray[np.float32]:
        # In float64, so that large but finite outputs do not overflow when they are squared.
        lengths_B = np.sqrt(np.einsum("bd,bd->b", raw_BD, raw_BD, dtype=np.float64))
        wrong = np.flatnonzero(~np.isfinite(lengths_B) | (lengths_B == 0))
        if len(wrong):
            rows = [batch.column("row_id")[int(position)].as_py() for position in wrong[:3]]
            raise NonFiniteError(
                f"{len(wrong)} of {batch.num_rows} embeddings hold NaN or infinity or are all "
                f"zero, the first are rows {rows}; look at these samples and at the weights"
            )
        embeddings_BD: npt.NDArray[np.float32] = (raw_BD / lengths_B[:, None]).astype(np.float32)
        return embeddings_BD


def load_encoder(config: EncoderConfig) -> Encoder:
    """Build the configured encoder, with random weights, on the configured device.

    Raises:
        EncoderError: An entry point does not load or is not what it should be, or there is no GPU
            although ``cuda`` is asked for.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise EncoderError(
            "encoder.device is cuda, but torch sees no GPU in this process; lend the workers one "
            "with workers.gpus_per_worker, or set encoder.device to auto"
        )
    return Encoder(build_module(config), load_entry_point(config.preprocess), torch.device(device))


def build_module(config: EncoderConfig, seed: int = 0) -> nn.Module:
    """Call the encoder's entry point under ``seed``; torch's own generator is left as it was.

    Raises:
        EncoderError: The entry point does not load, raises, or gives no nn.Module.
    """
    build = load_entry_point(config.encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = build(**config.encoder_args)
        except Exception as exc:
            raise EncoderError(
                f"entry point {config.encoder!r} with {config.encoder_args} raised {_brief(exc)}"
            ) from exc
    if not isinstance(module, nn.Module):
        raise EncoderError(
            f"entry point {config.encoder!r} gave {_form(module)}, it must give a torch.nn.Module"
        )
    return module


def _brief(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"


def _form(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {value.dtype} tensor {list(value.shape)}"
    return f"a {type(value).__name__}"
