"""Lets a request pass to its handler, or refuses it before a byte of it is read.

It knows gRPC, and neither credentials nor what is asked. Every request goes through it: also on a
server that asks nobody who they are, so that an rpc without a role is noticed where it is written.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from miner.errors import (
    BusyError,
    ForbiddenError,
    NotReadyError,
    RequestError,
    UnauthenticatedError,
)
from miner.serving.access import Access, client_of
from miner.serving.roles import NEEDED_ROLES
from miner.serving.status_codes import refusals

__all__ = ["Gate"]

logger = logging.getLogger(__name__)

ASK_AGAIN_S = 5.0
"""How soon a stream or an upload ends whose client has lost its role."""

MESSAGE_S = 30.0
"""How long a request may be without its message."""

WARN_EVERY_S = 1.0
"""How often a refusal is logged; who has no credentials must not fill the disk."""

UPLOAD = "/coalface.v1.MiningService/UploadWeights"

Handler = Any
"""A grpc.RpcMethodHandler."""
Admit = Callable[[Any], None]
Hold = Callable[[Any], AbstractContextManager[None]]


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc carries no types
    """Asks ``access`` before each rpc, but for those that nobody has to say who they are for.

    Of each rpc that streams, a client has ``max_streams`` under way at most, and one upload.
    """

    def __init__(self, access: Access, max_streams: int) -> None:
        self._access = access
        self._max_streams = max_streams
        self._held: Counter[tuple[str, str]] = Counter()  # streams by rpc and client
        self._warned_s = -WARN_EVERY_S
        self._num_unsaid = 0

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler]], call: grpc.HandlerCallDetails
    ) -> Handler:
        """The handler of the rpc, behind the check."""
        rpc: str = call.method
        handler = await continuation(call)
        is_open = NEEDED_ROLES.get(rpc, "none") is None
        if is_open and (handler is None or not handler.response_streaming):
            return handler

        def admit(context: Any) -> None:
            if is_open:
                return
            try:
                self._access.admit(rpc, context, is_served=handler is not None)
            except (UnauthenticatedError, ForbiddenError) as exc:
                self._warn(rpc, context, exc)
                raise

        def hold(context: Any) -> AbstractContextManager[None]:
            return self._holding(rpc, client_of(context))

        return _not_served(rpc, admit) if handler is None else _guarded(handler, admit, hold)

    @contextmanager
    def _holding(self, rpc: str, client: str) -> Iterator[None]:
        """Count a client's stream for as long as it lasts."""
        if self._held[rpc, client] >= (1 if rpc == UPLOAD else self._max_streams):
            if rpc == UPLOAD:  # of a connection that broke, maybe, and is given up soon
                raise NotReadyError(f"an upload of {client} is under way: ask again in a moment")
            raise BusyError(
                f"{client} has {self._max_streams} streams open, as many of this rpc as "
                "serving.max_streams_per_client allows: end one first"
            )
        self._held[rpc, client] += 1
        try:
            yield
        finally:
            self._held[rpc, client] -= 1
            if not self._held[rpc, client]:
                del self._held[rpc, client]

    def _warn(self, rpc: str, context: Any, refusal: Exception) -> None:
        now_s = time.monotonic()
        if now_s - self._warned_s < WARN_EVERY_S:
            self._num_unsaid += 1
            return
        unsaid = f" ({self._num_unsaid} more since the last)" if self._num_unsaid else ""
        self._warned_s, self._num_unsaid = now_s, 0
        logger.warning("refused %.200r from %s: %s%s", rpc, context.peer(), refusal, unsaid)


def _guarded(handler: Handler, admit: Admit, hold: Hold) -> Handler:
    """The same handler, whose request is read once the client is admitted.

    To gRPC every request is a stream here: a single message it would read before it calls anything.
    """

    async def answer(requests: Any, context: Any) -> Any:
        async with refusals(context):
            admit(context)
            if handler.request_streaming:
                with hold(context):
                    answer = handler.stream_unary(requests, context)
                    return await _while_admitted(answer, lambda: admit(context))
            return await handler.unary_unary(await _only_message(context), context)

    async def stream(requests: Any, context: Any) -> None:
        async with refusals(context):
            admit(context)
            with hold(context):
                if handler.request_streaming:
                    answers = handler.stream_stream(requests, context)
                else:
                    answers = handler.unary_stream(await _only_message(context), context)
                await _while_admitted(_written(answers, context), lambda: admit(context))

    form: Any = (
        (grpc.stream_stream_rpc_method_handler, stream)
        if handler.response_streaming
        else (grpc.stream_unary_rpc_method_handler, answer)
    )
    make, behaviour = form
    writer = _writer(handler.response_serializer)
    return make(behaviour, _reader(handler.request_deserializer), writer)


def _reader(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Reads a message; what is none is the client's fault, and no failure of the miner."""

    def read_message(content: bytes) -> Any:
        try:
            return read(content)
        except DecodeError as exc:
            raise RequestError(f"request: must be a message of this rpc; {exc}") from exc

    return read_message


def _writer(write: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Writes a message; a stream's are bytes already."""
    return lambda message: message if isinstance(message, bytes) else write(message)


def _not_served(rpc: str, admit: Admit) -> Handler:
    """Tells who may know that there is no such rpc."""

    async def answer(_requests: Any, context: Any) -> None:
        async with refusals(context):
            admit(context)
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED, f"this miner does not serve {rpc[:200]}"
            )

    return grpc.stream_unary_rpc_method_handler(answer)


async def _only_message(context: Any) -> Any:
    """The message of a request that has one."""
    try:
        async with asyncio.timeout(MESSAGE_S):
            message = await context.read()
    except TimeoutError as exc:
        raise RequestError(f"request: must come within {MESSAGE_S:g} s") from exc
    if message is grpc.aio.EOF:
        raise RequestError("request: must be one message, there is none")
    return message


async def _written(answers: Any, context: Any) -> None:
    """Have a handler write its answers, whichever of gRPC's two ways it has of doing so."""
    if inspect.isasyncgen(answers):
        async for each in answers:
            await context.write(each)
    else:
        await answers


async def _while_admitted(work: Coroutine[Any, Any, Any], admit: Callable[[], None]) -> Any:
    """Do the work, and break it off once the client may not ask for it any more."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=ASK_AGAIN_S)
            if not task.done():
                admit()
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # nobody else asks for it
