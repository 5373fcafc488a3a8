"""The table that turns a gRPC status into a trainer error; the counterpart of the miner's table.

It knows no request and no run. Codes that mean "the transport or the process, not the request" all
become :class:`MinerUnreachableError`; only those are worth another try, and limits where the miner
says when.
"""

from typing import Any

import grpc

from trainer.errors import (
    AccessDeniedError,
    BadRequestError,
    FeedError,
    LimitError,
    MinerFaultError,
    MinerUnreachableError,
    ProtocolError,
    RoundLostError,
    RunRefusedError,
    StepRangeError,
)

__all__ = ["ERRORS", "error_of", "may_pass", "retry_after_s"]

ERRORS: dict[grpc.StatusCode, type[FeedError]] = {
    grpc.StatusCode.UNAVAILABLE: MinerUnreachableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: MinerUnreachableError,
    grpc.StatusCode.CANCELLED: MinerUnreachableError,
    grpc.StatusCode.ABORTED: MinerUnreachableError,
    # The miner never sends UNKNOWN; the transport does, for a connection that broke.
    grpc.StatusCode.UNKNOWN: MinerUnreachableError,
    grpc.StatusCode.UNAUTHENTICATED: AccessDeniedError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
    grpc.StatusCode.INVALID_ARGUMENT: BadRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: RunRefusedError,
    grpc.StatusCode.ALREADY_EXISTS: RunRefusedError,
    grpc.StatusCode.OUT_OF_RANGE: StepRangeError,
    grpc.StatusCode.NOT_FOUND: RoundLostError,
    grpc.StatusCode.DATA_LOSS: RoundLostError,
    grpc.StatusCode.INTERNAL: MinerFaultError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
}


def error_of(failed: grpc.RpcError, refused: type[FeedError] = RunRefusedError) -> FeedError:
    """The trainer error for a failed call; ``refused`` is what FAILED_PRECONDITION means there."""
    code = failed.code()
    kind = refused if code is grpc.StatusCode.FAILED_PRECONDITION else ERRORS[code]
    return kind(f"{failed.details() or 'no details'} [{code.name}]")


def may_pass(error: FeedError, hint_s: float) -> bool:
    """Whether another attempt may succeed, given what :func:`retry_after_s` says."""
    return isinstance(error, MinerUnreachableError) or (
        isinstance(error, LimitError) and hint_s > 0
    )


def retry_after_s(failed: grpc.RpcError) -> float:
    """Seconds after which the server suggests another try; 0 where it suggests nothing."""
    metadata: Any = failed.trailing_metadata() or ()
    return float(dict(metadata).get("retry-after-ms", 0)) / 1000
