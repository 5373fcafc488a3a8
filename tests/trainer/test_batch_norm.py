"""Batch norm shared by two real gloo processes against torch's on the whole batch in one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import multiprocessing, nn

from tests.trainer.norm_ranks import CASES, SHARES, Measured, evaluate, measure, run_rank
from trainer.batch_norm import SharedBatchNorm, share_batch_norm

WHOLE = slice(0, SHARES[-1].stop)
EXACT = [name for name in CASES if name != "autocast"]
Ranks = list[dict[str, Measured]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
        run_rank, args=(folder,), nprocs=len(SHARES)
    )
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(len(SHARES))]


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    """Off by no more than ``tolerance`` of the largest value."""
    off = (found.double() - expected.double()).abs().max().item()
    assert off <= tolerance * max(1.0, expected.abs().max().item()), what


def assert_as_whole(both: list[Measured], whole: Measured, tolerance: float) -> None:
    for key, expected in whole.items():
        parts = [rank[key] for rank in both]
        if key.startswith(("outputs.", "inputs.")):
            assert_near(torch.cat(parts), expected, tolerance, key)
        elif key.startswith("gradient."):
            assert_near(parts[0] + parts[1], expected, tolerance, key)
        else:
            assert torch.equal(parts[0], parts[1]), key
            assert_near(parts[0], expected, tolerance, key)


@pytest.mark.parametrize("name", EXACT)
def test_unequal_shares_give_the_outputs_gradients_and_state_of_the_whole_batch(
    ranks: Ranks, name: str
) -> None:
    case = CASES[name]
    whole = measure(case, case.build(), WHOLE, torch.float64)
    assert all(rank[name].keys() - {"evaluated"} == whole.keys() for rank in ranks)
    # Of inputs near 30 and 0.01 apart, float32 keeps no more: torch's own layer is as far off.
    tolerance = 1e-3 if name.startswith("far") else 1e-5
    assert_as_whole([rank[name] for rank in ranks], whole, tolerance)


@pytest.mark.parametrize("name", [name for name in EXACT if name.startswith("far")])
def test_the_variance_of_values_far_from_zero_keeps_its_digits(ranks: Ranks, name: str) -> None:
    case = CASES[name]
    network = nn.BatchNorm2d(3).double()
    for step in range(3):
        network(case.rows(step)[0].double())
    assert network.running_var is not None
    decayed = 0.9**3
    found = ranks[0][name]["state.1.running_var"].double() - decayed
    assert torch.allclose(found, network.running_var - decayed, rtol=5e-3)


def test_autocast_keeps_float32_statistics_of_the_whole_batch(ranks: Ranks) -> None:
    case = CASES["autocast"]
    whole = measure(case, case.build(), WHOLE, torch.float32)
    for rank in ranks:
        assert rank["autocast"]["outputs.0"].dtype is torch.bfloat16
        assert rank["autocast"]["state.1.running_mean"].dtype is torch.float32
        assert rank["autocast"]["state.1.running_var"].dtype is torch.float32
    assert_as_whole([rank["autocast"] for rank in ranks], whole, 2e-2)
    for key in ("state.1.running_mean", "state.1.running_var"):
        assert_near(ranks[0]["autocast"][key], whole[key], 1e-4, key)


@pytest.mark.parametrize("name", EXACT)
def test_evaluation_is_local(ranks: Ranks, name: str) -> None:
    """Rank 1 evaluates alone, as torch's layer would with its state and rows."""
    case, found = CASES[name], ranks[1][name]
    local = case.build()
    prefix = "state."
    local.load_state_dict(
        {key.removeprefix(prefix): v for key, v in found.items() if key.startswith(prefix)}
    )
    assert torch.allclose(found["evaluated"], evaluate(case, local, SHARES[1]), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"affine": False},
        {"track_running_stats": False},
        {"affine": False, "track_running_stats": False},
        {"momentum": None, "eps": 0.1},
    ],
    ids=str,
)
def test_every_layer_is_replaced_with_names_state_and_options_kept(options: dict[str, Any]) -> None:
    norm = nn.BatchNorm2d(4, **options)
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Sequential(norm, nn.ReLU()), norm).eval()
    for parameter in norm.parameters():
        nn.init.normal_(parameter).requires_grad_(False)
    before = {name: v.clone() for name, v in network.state_dict().items()}
    trained = [name for name, p in network.named_parameters() if p.requires_grad]

    shared = share_batch_norm(network)

    assert list(shared.state_dict()) == list(before)
    assert all(torch.equal(v, before[name]) for name, v in shared.state_dict().items())
    assert [name for name, p in shared.named_parameters() if p.requires_grad] == trained
    layers = [m for m in shared.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(layers) == 2
    for layer in layers:
        assert isinstance(layer, SharedBatchNorm)
        assert not layer.training
        for option in ("eps", "momentum", "affine", "track_running_stats", "num_features"):
            assert getattr(layer, option) == getattr(norm, option)


def test_one_layer_under_two_names_is_replaced_under_both() -> None:
    norm = nn.BatchNorm1d(2)
    shared = share_batch_norm(nn.Sequential(norm, norm))
    assert isinstance(shared, nn.Sequential)
    assert all(isinstance(layer, SharedBatchNorm) for layer in shared)
    assert shared[0].weight is shared[1].weight
    assert shared[0].running_mean is shared[1].running_mean


def test_a_lone_batch_norm_is_returned_as_its_shared_form() -> None:
    assert isinstance(share_batch_norm(nn.BatchNorm1d(2)), SharedBatchNorm)


def test_inputs_without_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs \[rows, channels, \.\.\.\], got \(3,\)"):
        SharedBatchNorm(3)(torch.zeros(3))
