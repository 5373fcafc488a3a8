"""What a request must look like before anything is done with it; errors begin with the field.

It knows the wire format, and neither runs nor rounds. Shape legend: Q = queries, D = dimensions,
I = identities, R = rows.
"""

import re
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from miner.errors import LimitError, RequestError
from miner.serving.plan import RunParameters
from miner.serving.queries import Queries
from protos.coalface.v1 import mining_pb2

__all__ = [
    "MAX_STEPS",
    "check_announcement",
    "check_query",
    "check_round",
    "check_step",
    "check_stream",
    "check_upload_part",
    "read_difficulty",
    "read_page",
    "read_queries",
    "read_row_ids",
    "read_run_parameters",
    "read_upload_header",
    "watch_interval_s",
]

MAX_STEPS = 65_536
MAX_NEGATIVES, MAX_FOUND = 1024, 262_144
"""Of a query, and of all queries together: an answer of 4 MB."""
MAX_SAMPLES = 65_536
MAX_DIM = 65_536
DEFAULT_WATCH_S = 0.5
DEFAULT_PAGE, MAX_PAGE = 100, 1000
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


def read_run_parameters(request: mining_pb2.OpenRunRequest, max_batch_rows: int) -> RunParameters:
    """The parameters that a run is opened with.

    Raises:
        RequestError: If a field is out of range.
    """
    exhausted, stale = request.exhausted_policy, request.stale_policy
    _require(exhausted in EXHAUSTED, "exhausted_policy", exhausted, "must be a known policy")
    _require(stale in STALE, "stale_policy", stale, "must be a known policy")
    rows, rule = request.batch_rows, f"must be at most serving.max_batch_rows={max_batch_rows}"
    _require(rows <= max_batch_rows, "batch_rows", rows, rule)
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


def check_query(request: mining_pb2.QueryNegativesRequest, num_queries: int) -> None:
    """Raise RequestError unless so many negatives of so many queries fit an answer."""
    wanted = request.num_negatives
    _require(1 <= wanted <= MAX_NEGATIVES, "num_negatives", wanted, f"must be 1 to {MAX_NEGATIVES}")
    fits = num_queries * wanted <= MAX_FOUND
    rule = f"times {num_queries} queries must be at most {MAX_FOUND}"
    _require(fits, "num_negatives", wanted, rule)
    if request.HasField("max_similarity"):
        ceiling = request.max_similarity
        _require(-1 <= ceiling <= 1, "max_similarity", ceiling, "must be -1 to 1")


def read_queries(request: mining_pb2.QueryNegativesRequest) -> Queries:
    """The queries, in arrays that fit each other.

    Raises:
        RequestError: If there are none, or lengths do not fit.
    """
    kind = request.WhichOneof("queries")
    _require(kind is not None, "queries", None, "must be rows or embeddings")
    if kind == "rows":
        row_ids_Q = _array(request.rows.row_ids, "<i8", "rows.row_ids")
        _require(len(row_ids_Q) > 0, "rows.row_ids", 0, "must hold at least one")
        return Queries(row_ids_Q=row_ids_Q)
    asked = request.embeddings
    _require(1 <= asked.dim <= MAX_DIM, "embeddings.dim", asked.dim, f"must be 1 to {MAX_DIM}")
    values = _array(asked.embeddings, "<f4", "embeddings.embeddings")
    identity_ids_Q = _array(asked.identity_ids, "<i4", "embeddings.identity_ids")
    num_queries = len(identity_ids_Q)
    _require(num_queries > 0, "embeddings.identity_ids", 0, "must hold at least one")
    _require(
        len(values) == num_queries * asked.dim,
        "embeddings.embeddings",
        f"{len(values)} numbers",
        f"must hold {num_queries} queries of {asked.dim} dimensions",
    )
    embeddings_QD = values.reshape(num_queries, asked.dim)
    return Queries(embeddings_QD=embeddings_QD, identity_ids_Q=identity_ids_Q)


def read_row_ids(request: mining_pb2.GetSamplesRequest, num_rows: int) -> npt.NDArray[np.int64]:
    """[R] the rows that are asked for.

    Raises:
        RequestError: If they are none or too many, or one is not in the row store.
    """
    row_ids_R = _array(request.row_ids, "<i8", "row_ids")
    fits = 1 <= len(row_ids_R) <= MAX_SAMPLES
    _require(fits, "row_ids", f"{len(row_ids_R)} rows", f"must hold 1 to {MAX_SAMPLES}")
    outside = row_ids_R[(row_ids_R < 0) | (row_ids_R >= num_rows)]
    _require(not len(outside), "row_ids", outside[:5].tolist(), f"each must be 0 to {num_rows - 1}")
    return row_ids_R


def read_upload_header(
    request: mining_pb2.UploadWeightsRequest, max_bytes: int
) -> mining_pb2.UploadHeader:
    """The header of an upload's first message.

    Raises:
        RequestError: If it is missing or malformed.
    """
    _require(request.HasField("header"), "header", None, "must be in the first message")
    header = request.header
    _require(header.step >= 0, "header.step", header.step, "must be at least 0")
    is_digest = SHA256.fullmatch(header.sha256) is not None
    _require(is_digest, "header.sha256", header.sha256[:80], "must be 64 lower-case hex digits")
    _require(header.total_bytes >= 1, "header.total_bytes", header.total_bytes, "must be positive")
    if header.total_bytes > max_bytes:
        raise LimitError(
            f"an upload of {header.total_bytes} bytes is above the {max_bytes} that "
            "serving.max_upload_bytes allows"
        )
    return header


def check_upload_part(request: mining_pb2.UploadWeightsRequest) -> None:
    """Raise RequestError unless it brings the file on: a message after an upload's first."""
    has_header = request.HasField("header")
    _require(not has_header, "header", "another one", "must be in the first message only")
    rule = "must hold at least a byte after the first message"
    _require(bool(request.content), "content", "0 bytes", rule)


def read_difficulty(
    request: mining_pb2.ReportDifficultyRequest, num_identities: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """[I] identities and their losses.

    Raises:
        RequestError: If lengths do not fit, an identity is not in the catalog or occurs twice, or a
            loss is negative or not finite.
    """
    check_step(request.step)
    identity_ids_I = _array(request.identity_ids, "<i4", "identity_ids")
    losses_I = _array(request.losses, "<f4", "losses")
    _require(len(identity_ids_I) > 0, "identity_ids", 0, "must hold at least one")
    outside = identity_ids_I[(identity_ids_I < 0) | (identity_ids_I >= num_identities)]
    rule = f"each must be 0 to {num_identities - 1}"
    _require(not len(outside), "identity_ids", outside[:5].tolist(), rule)
    distinct = len(np.unique(identity_ids_I)) == len(identity_ids_I)
    _require(distinct, "identity_ids", "repeats", "each must occur once")
    same = len(losses_I) == len(identity_ids_I)
    _require(same, "losses", len(losses_I), f"must be {len(identity_ids_I)}, one per identity")
    broken = losses_I[~(np.isfinite(losses_I) & (losses_I >= 0))]
    _require(not len(broken), "losses", broken[:5].tolist(), "each must be finite and at least 0")
    return identity_ids_I, losses_I


def read_page(request: mining_pb2.ListRoundsRequest) -> tuple[int, int]:
    """How many rounds at most, and before which one.

    Raises:
        RequestError: If one of them is out of range.
    """
    most, before = request.max_rounds, request.before_round_id
    _require(0 <= most <= MAX_PAGE, "max_rounds", most, f"must be 0 to {MAX_PAGE}")
    _require(before >= 0, "before_round_id", before, "must be at least 0")
    return most or DEFAULT_PAGE, before or 2**63


def check_round(request: mining_pb2.GetRoundRequest) -> None:
    """Raise RequestError unless the number can be a round's, or 0."""
    _require(request.round_id >= 0, "round_id", request.round_id, "must be at least 0")


def watch_interval_s(request: mining_pb2.WatchStatusRequest) -> float:
    """Seconds between two messages at least.

    Raises:
        RequestError: If it is out of range.
    """
    asked = request.min_interval_s
    _require(asked == 0 or 0.1 <= asked <= 60, "min_interval_s", asked, "must be 0, or 0.1 to 60")
    return asked or DEFAULT_WATCH_S


def _array(content: bytes, dtype: str, field: str) -> npt.NDArray[Any]:
    kind = np.dtype(dtype)
    rule = f"must be a multiple of {kind.itemsize} bytes"
    _require(len(content) % kind.itemsize == 0, field, f"{len(content)} bytes", rule)
    return np.frombuffer(content, kind)


def _require(holds: bool, field: str, value: object, rule: str) -> None:
    if not holds:
        raise RequestError(f"{field}: {rule}, got {value!r}")
