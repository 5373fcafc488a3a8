"""What a request must look like before anything is done with it; errors begin with the field.

It knows the wire format, and neither runs nor rounds.
"""

import re
from typing import Literal

from miner.errors import RequestError
from miner.serving.plan import RunParameters
from protos.coalface.v1 import mining_pb2

__all__ = ["MAX_STEPS", "check_announcement", "check_step", "check_stream", "read_run_parameters"]

MAX_STEPS = 4096
SHA256 = re.compile(r"[0-9a-f]{64}")

EXHAUSTED: dict[int, Literal["repeat", "wait"]] = {
    mining_pb2.EXHAUSTED_POLICY_UNSPECIFIED: "repeat",
    mining_pb2.EXHAUSTED_POLICY_REPEAT: "repeat",
    mining_pb2.EXHAUSTED_POLICY_WAIT: "wait",
}
STALE: dict[int, Literal["serve", "wait"]] = {
    mining_pb2.STALE_POLICY_UNSPECIFIED: "serve",
    mining_pb2.STALE_POLICY_SERVE: "serve",
    mining_pb2.STALE_POLICY_WAIT: "wait",
}


def read_run_parameters(request: mining_pb2.OpenRunRequest) -> RunParameters:
    """The parameters that a run is opened with.

    Raises:
        RequestError: If a field is out of range.
    """
    exhausted, stale = request.exhausted_policy, request.stale_policy
    _require(exhausted in EXHAUSTED, "exhausted_policy", exhausted, "must be a known policy")
    _require(stale in STALE, "stale_policy", stale, "must be a known policy")
    return RunParameters(
        run_id=request.run_id,
        batch_rows=request.batch_rows,
        seed=request.seed,
        exhausted=EXHAUSTED[exhausted],
        stale=STALE[stale],
        max_staleness_steps=request.max_staleness_steps,
    )


def check_stream(request: mining_pb2.StreamTripletsRequest) -> None:
    """Raise RequestError unless steps and rank are in range."""
    steps, ranks = request.num_steps, request.world_size
    _require(request.first_step >= 0, "first_step", request.first_step, "must be at least 0")
    _require(1 <= steps <= MAX_STEPS, "num_steps", steps, f"must be 1 to {MAX_STEPS}")
    _require(ranks >= 1, "world_size", ranks, "must be at least 1")
    _require(0 <= request.rank < ranks, "rank", request.rank, f"must be 0 to {ranks - 1}")


def check_announcement(request: mining_pb2.AnnounceWeightsRequest) -> None:
    """Raise RequestError unless step, URI and digest have their form."""
    _require(request.step >= 0, "step", request.step, "must be at least 0")
    _require(bool(request.uri), "uri", request.uri, "must name a safetensors file")
    is_digest = SHA256.fullmatch(request.sha256) is not None
    _require(is_digest, "sha256", request.sha256, "must be 64 lower-case hex digits")


def check_step(step: int) -> None:
    """Raise RequestError unless ``step`` can be one."""
    _require(step >= 0, "step", step, "must be at least 0")


def _require(holds: bool, field: str, value: object, rule: str) -> None:
    if not holds:
        raise RequestError(f"{field}: {rule}, got {value!r}")
