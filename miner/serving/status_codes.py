"""The table that turns the miner's errors into gRPC status codes, and the place that applies it.

It knows no request. What a code means to a client is written beside each rpc in ``mining.proto``;
the trainer's own table maps the codes back. With a code go details for programs, in the form of
``google.rpc``: the error's kind, the field that is wrong, and when to try again.
"""

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from miner import errors

__all__ = ["RETRY_AFTER_MS", "STATUS_CODES", "refusals", "status_of"]

logger = logging.getLogger(__name__)

RETRY_AFTER_MS = 1000  # the hint that goes with UNAVAILABLE and a BusyError
DOMAIN = "coalface"
MAX_TEXT_BYTES = 1000
"""Of UTF-8. A text travels percent-encoded (three bytes for one) and twice more in base64, and
clients take 8 KiB of metadata."""
_FIELD = re.compile(r"[a-z0-9_.\[\]]+(?=: )")

STATUS_CODES: dict[type[errors.CoalfaceError], grpc.StatusCode] = {
    errors.CoalfaceError: grpc.StatusCode.INTERNAL,
    errors.ConfigError: grpc.StatusCode.INTERNAL,
    errors.DatasetError: grpc.StatusCode.DATA_LOSS,  # only the row store is read while serving
    errors.EncoderError: grpc.StatusCode.INTERNAL,
    errors.WeightsRefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SnapshotError: grpc.StatusCode.INTERNAL,
    errors.PoisonSampleError: grpc.StatusCode.INTERNAL,
    errors.NonFiniteError: grpc.StatusCode.INTERNAL,
    errors.SearchError: grpc.StatusCode.INTERNAL,
    errors.SelectionError: grpc.StatusCode.INTERNAL,
    errors.RoundLogError: grpc.StatusCode.INTERNAL,
    errors.DiskError: grpc.StatusCode.UNAVAILABLE,  # a full disk may be emptied: go on asking
    errors.DamagedRoundError: grpc.StatusCode.DATA_LOSS,
    errors.DamagedRunError: grpc.StatusCode.DATA_LOSS,
    errors.RoundExpiredError: grpc.StatusCode.NOT_FOUND,
    errors.StaleWriterError: grpc.StatusCode.UNAVAILABLE,  # a successor has the log: go there
    errors.RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.LimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    errors.RunError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnknownRunError: grpc.StatusCode.NOT_FOUND,
    errors.RunConflictError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StepRangeError: grpc.StatusCode.OUT_OF_RANGE,
    errors.NotReadyError: grpc.StatusCode.UNAVAILABLE,
}


def status_of(error: errors.CoalfaceError) -> grpc.StatusCode:
    """The code of the most specific class in the table that ``error`` belongs to."""
    return next(STATUS_CODES[kind] for kind in type(error).__mro__ if kind in STATUS_CODES)


@asynccontextmanager
async def refusals(context: Any) -> AsyncIterator[None]:
    """End the request of ``context`` with the status that an error inside the block calls for.

    An error that is not the miner's own is a bug: it is logged whole, and the client gets INTERNAL
    with its kind alone.
    """
    try:
        yield
    except errors.CoalfaceError as exc:
        code = status_of(exc)
        hints = code is grpc.StatusCode.UNAVAILABLE or isinstance(exc, errors.BusyError)
        await _abort(context, code, str(exc), type(exc).__name__, hints=hints)
    except grpc.aio.AbortError:
        raise
    except grpc.aio.InternalError as exc:  # nobody is there to be told
        logger.info("a client went away in the middle of an answer: %s", exc)
    except Exception as exc:
        logger.exception("a request failed by an unforeseen error")
        kind = type(exc).__name__
        await _abort(context, grpc.StatusCode.INTERNAL, f"{kind} in the miner: see its log", kind)


async def _abort(
    context: Any, code: grpc.StatusCode, text: str, kind: str, *, hints: bool = False
) -> NoReturn:
    text = _cut(text)
    metadata = [*rpc_status.to_status(_rich(code, text, kind, hints)).trailing_metadata]
    if hints:
        metadata.append(("retry-after-ms", str(RETRY_AFTER_MS)))
    await context.abort(code, text, tuple(metadata))
    raise AssertionError("abort raises")


def _cut(text: str) -> str:
    """As much of a text as fits; it may quote a request, or a path that is not UTF-8."""
    content = text.encode("utf-8", "replace")
    kept = content[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
    return kept if len(content) <= MAX_TEXT_BYTES else f"{kept} ..."


def _rich(code: grpc.StatusCode, text: str, kind: str, hints: bool) -> Status:
    details: list[Message] = [ErrorInfo(reason=kind.removesuffix("Error"), domain=DOMAIN)]
    field = _FIELD.match(text) if code is grpc.StatusCode.INVALID_ARGUMENT else None
    if field is not None:
        violation = BadRequest.FieldViolation(
            field=field[0], description=text.removeprefix(f"{field[0]}: ")
        )
        details.append(BadRequest(field_violations=[violation]))
    if hints:
        details.append(RetryInfo(retry_delay=Duration(nanos=RETRY_AFTER_MS * 10**6)))
    packed = [AnyMessage() for _ in details]
    for any_message, detail in zip(packed, details, strict=True):
        any_message.Pack(detail)
    number: int = code.value[0]
    return Status(code=number, message=text, details=packed)
