"""Batch norm over two real gloo ranks with unequal shares, against torch's on the whole batch."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer.batch_norm import SharedBatchNorm, share_batch_norm

SCRIPT = Path(__file__).with_name("batch_norm_ranks.py")


def run_ranks(folder: Path, case: dict[str, Any]) -> list[dict[str, Any]]:
    torch.save(case, folder / "case.pt")
    ranks = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(folder), str(rank)]) for rank in (0, 1)
    ]
    assert [rank.wait(60) for rank in ranks] == [0, 0]
    return [torch.load(folder / f"rank-{rank}.pt") for rank in (0, 1)]


def make_case(shape: tuple[int, ...], mean: float, std: float, **changes: Any) -> dict[str, Any]:
    torch.manual_seed(4)
    norm = "BatchNorm1d" if len(shape) == 2 else "BatchNorm2d"
    module = getattr(nn, norm)(shape[1], **changes.get("options", {}))
    nn.init.uniform_(module.weight, 0.5, 2.0)
    nn.init.uniform_(module.bias)
    return {
        "module": norm,
        "options": {},
        "state": module.state_dict(),
        "inputs": torch.randn(shape) * std + mean,
        "slopes": torch.randn(shape),
        "split": 2,
        "bf16": False,
    } | changes


@pytest.mark.parametrize(
    ("shape", "moments", "options", "tolerance"),
    [
        ((7, 5), (0.3, 1.0), {}, 1e-4),
        ((7, 3, 4, 4), (-2.0, 0.5), {"momentum": 0.3}, 1e-4),
        ((7, 3, 4, 4), (0.0, 1.0), {"momentum": None}, 1e-4),
        ((7, 3, 4, 4), (30.0, 0.01), {}, 2e-2),  # float32 inputs resolve no more than that
        ((7, 3, 4, 4), (0.0, 1.0), {"track_running_stats": False}, 1e-4),
    ],
    ids=["vectors", "images", "cumulative", "far from zero", "no running statistics"],
)
def test_two_ranks_normalise_as_one(
    tmp_path: Path,
    shape: tuple[int, ...],
    moments: tuple[float, float],
    options: dict[str, Any],
    tolerance: float,
) -> None:
    case = make_case(shape, *moments, options=options)
    whole = getattr(nn, case["module"])(shape[1], **options).double()
    whole.load_state_dict(case["state"])
    inputs = case["inputs"].double().requires_grad_()
    outputs = whole(inputs)
    (outputs * case["slopes"]).sum().backward()

    first, second = run_ranks(tmp_path, case)

    def close(found: torch.Tensor, expected: torch.Tensor | None) -> bool:
        assert expected is not None
        scale = float(expected.abs().max())
        return torch.allclose(found.double(), expected, rtol=tolerance, atol=tolerance * scale)

    assert close(torch.cat([first["outputs"], second["outputs"]]), outputs.detach())
    assert close(torch.cat([first["inputs"], second["inputs"]]), inputs.grad)
    assert close(first["weight"] + second["weight"], whole.weight.grad)
    assert close(first["bias"] + second["bias"], whole.bias.grad)
    for name, expected in whole.state_dict().items():
        assert close(first["state"][name], expected.double()), name
        assert torch.equal(first["state"][name], second["state"][name]), name


def test_lower_precision_keeps_its_statistics_in_float32(tmp_path: Path) -> None:
    case = make_case((8, 3, 4, 4), 1.0, 1.0, bf16=True)
    first, _ = run_ranks(tmp_path, case)
    assert first["state"]["running_mean"].dtype == torch.float32
    expected = 0.1 * case["inputs"].mean((0, 2, 3))
    assert torch.allclose(first["state"]["running_mean"], expected, atol=5e-3)
    assert torch.isfinite(first["inputs"]).all()


def test_names_and_values_of_the_weights_stay() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    shared = share_batch_norm(module)
    assert isinstance(shared[1], SharedBatchNorm)
    assert not isinstance(shared[2], SharedBatchNorm)
    after = shared.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_evaluation_is_local_and_equals_torch() -> None:
    torch.manual_seed(1)
    plain = nn.BatchNorm2d(3)
    plain(torch.randn(9, 3, 2, 2))
    plain.eval()
    inputs = torch.randn(4, 3, 2, 2)
    expected = plain(inputs)
    assert torch.equal(share_batch_norm(plain)(inputs), expected)
