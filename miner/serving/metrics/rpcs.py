"""Counts rpcs from outside: the servicer is wrapped and knows nothing of it.

It knows gRPC's interceptors and no message but the size of those of a stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from miner.serving.metrics.meters import RpcCall, ServingMeters
from miner.serving.roles import NEEDED_ROLES

__all__ = ["RpcMetering"]

STREAM = "StreamTriplets"
_HANDLERS: dict[tuple[bool, bool], tuple[str, Any]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class RpcMetering(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Counts the rpcs of one service; put it before other interceptors, to see what they refuse."""

    def __init__(self, service: str, meters: ServingMeters) -> None:
        self._prefix = f"/{service}/"
        self._meters = meters

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The handler, wrapped if it is one of the service's."""
        handler = await continuation(handler_call_details)
        path: str = handler_call_details.method
        if handler is None or path not in NEEDED_ROLES or not path.startswith(self._prefix):
            return handler  # not of the service, or no rpc at all: that would be a label of its own
        return self._metered(handler, path.removeprefix(self._prefix))

    def _metered(self, handler: Any, method: str) -> Any:
        name, make = _HANDLERS[handler.request_streaming, handler.response_streaming]
        behave, serialize, meters = (
            getattr(handler, name),
            handler.response_serializer,
            self._meters,
        )

        async def behave_metered(request: Any, context: Any) -> Any:
            with meters.rpc(method) as call:
                try:
                    if method != STREAM:
                        return await behave(request, _Context(context, call))
                    with meters.stream():
                        return await behave(request, _StreamContext(context, call, meters))
                except asyncio.CancelledError:
                    call.code = grpc.StatusCode.CANCELLED.name
                    raise
                except grpc.aio.AbortError:  # noted when it was aborted
                    raise
                except Exception:
                    call.code = grpc.StatusCode.UNKNOWN.name
                    raise

        def serialize_metered(message: Any) -> bytes:
            content: bytes = serialize(message)
            meters.sent_bytes(len(content))
            return content

        return make(
            behave_metered,
            request_deserializer=handler.request_deserializer,
            response_serializer=serialize_metered if method == STREAM else serialize,
        )


class _Context:
    """A servicer's context that notes answer and status."""

    def __init__(self, context: Any, call: RpcCall) -> None:
        self._context = context
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        self._call.answered()
        await self._context.write(message)

    async def abort(self, code: grpc.StatusCode, *details: Any) -> None:
        self._call.code = code.name
        await self._context.abort(code, *details)


class _StreamContext(_Context):
    """One that also notes how long the client lets the stream wait."""

    def __init__(self, context: Any, call: RpcCall, meters: ServingMeters) -> None:
        super().__init__(context, call)
        self._meters = meters

    async def write(self, message: Any) -> None:
        self._call.answered()
        begin_s = time.monotonic()
        try:
            await self._context.write(message)
        finally:
            self._meters.waited("client", time.monotonic() - begin_s)
