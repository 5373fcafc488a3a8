"""Where bytes become messages and messages bytes, the same for every handler.

Bytes that are no message are refused as a malformed request: gRPC by itself answers with UNKNOWN,
which says "try again". An answer may be bytes already. It knows neither rpcs nor fields.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from miner.errors import RequestError
from miner.serving.status_codes import refusals

__all__ = ["MessageEdge", "require_message"]


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands in for a request that could not be read."""

    reason: str


def require_message(message: Any) -> None:
    """Raise RequestError if the message could not be read."""
    if isinstance(message, Malformed):
        raise RequestError(f"request: must be a message of this rpc; {message.reason}")


class MessageEdge(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Has every handler read what it can, refuses the rest, and writes bytes as they are.

    Handlers of a stream of requests ask for themselves: :func:`require_message`.
    """

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        """The handler of the rpc, or None if there is none."""
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler
        read = _tolerant(handler.request_deserializer)
        kind = _kind_of(handler)
        behaviour = getattr(handler, kind)
        if not handler.request_streaming:
            behaviour = _guarded(behaviour, is_stream=handler.response_streaming)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(behaviour, read, _bytes_or(handler.response_serializer))


def _kind_of(handler: Any) -> str:
    sides = ("unary", "stream")
    return f"{sides[handler.request_streaming]}_{sides[handler.response_streaming]}"


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(content: bytes) -> Any:
        try:
            return deserialize(content)
        except DecodeError as exc:
            return Malformed(str(exc))

    return read


def _bytes_or(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    return lambda message: message if isinstance(message, bytes) else serialize(message)


def _guarded(behaviour: Callable[..., Any], *, is_stream: bool) -> Callable[..., Any]:
    async def guarded(request: Any, context: Any) -> Any:
        async with refusals(context):
            require_message(request)
        if not is_stream:
            return await behaviour(request, context)
        await _drive(behaviour(request, context), context)
        return None

    return guarded


async def _drive(stream: Any, context: Any) -> None:
    """Handlers of streams either write to the context themselves, or are generators."""
    if hasattr(stream, "__aiter__"):
        async for message in stream:
            await context.write(message)
    else:
        await stream
